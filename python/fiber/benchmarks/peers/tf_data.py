"""tf.data: TensorFlow's decoder with the accurate DCT, and an antialiased bicubic resize."""

# pyright: reportMissingImports=false, reportMissingModuleSource=false

from __future__ import annotations

from typing import Any

import tensorflow as tf

from .task import MEAN, RATIO, SCALE, SIZE, STD, Epoch, PeerTask


def open_peer(task: PeerTask) -> Epoch:
    """Build the dataset with a private pool of `task.threads` threads."""
    tf.config.threading.set_inter_op_parallelism_threads(task.threads)
    tf.config.threading.set_intra_op_parallelism_threads(task.threads)
    mean = tf.constant([m * 255 for m in MEAN])
    std = tf.constant([s * 255 for s in STD])

    def load(path: Any) -> Any:
        data = tf.io.read_file(path)
        if task.work == "crop":
            image = _cropped(data)
        else:
            image = tf.image.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE")
        image = tf.image.resize(image, [SIZE, SIZE], method="bicubic", antialias=True)
        if task.work == "crop":
            image = tf.image.random_flip_left_right(image)
        # (H, W, 3) -> (3, H, W)
        return tf.transpose((image - mean) / std, [2, 0, 1])

    images = tf.data.Dataset.from_tensor_slices(list(task.files))
    images = images.map(load, num_parallel_calls=task.threads)
    images = images.batch(task.batch_size).prefetch(2)
    options = tf.data.Options()
    options.threading.private_threadpool_size = task.threads
    images = images.with_options(options)
    return lambda number: images


def _cropped(data: Any) -> Any:
    """Decode a random crop of an encoded image."""
    begin, extent, _ = tf.image.sample_distorted_bounding_box(
        tf.io.extract_jpeg_shape(data),
        tf.zeros([1, 0, 4]),
        area_range=SCALE,
        aspect_ratio_range=RATIO,
        use_image_if_no_bounding_boxes=True,
    )
    top, left, _ = tf.unstack(begin)
    height, width, _ = tf.unstack(extent)
    window = tf.stack([top, left, height, width])
    return tf.image.decode_and_crop_jpeg(data, window, channels=3, dct_method="INTEGER_ACCURATE")
