//! The extension module `fiber._core`: registration only.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

pyo3::create_exception!(
    fiber,
    DecodeError,
    PyValueError,
    "A picture whose bytes cannot be decoded; the message names the file and the reason."
);

/// Data path of FIBER; see the stub `_core.pyi` for the typed face.
#[pymodule]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    let profile = if cfg!(debug_assertions) {
        "debug"
    } else {
        "release"
    };
    module.add("build_profile", profile)?;
    module.add("DecodeError", module.py().get_type::<DecodeError>())?;
    Ok(())
}
