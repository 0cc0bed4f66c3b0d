"""Tar files for tests, made by Python's own `tarfile`."""

import io
import tarfile

from PIL import Image


def picture(shade, form="PNG"):
    file = io.BytesIO()
    Image.new("RGB", (40, 30), (shade, 90, 90)).save(file, form)
    return file.getvalue()


def write_tar(path, members, form=tarfile.USTAR_FORMAT):
    """Write (name, bytes) pairs, or finished TarInfo objects without content."""
    with tarfile.open(path, "w", format=form) as tar:
        for entry in members:
            if isinstance(entry, tarfile.TarInfo):
                tar.addfile(entry)
                continue
            info = tarfile.TarInfo(entry[0])
            info.size = len(entry[1])
            tar.addfile(info, io.BytesIO(entry[1]))
    return path
