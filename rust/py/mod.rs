//! Registration of the extension module `fiber._core`.

// Arguments converted from Python are owned, so pyo3 passes them by value.
#![allow(clippy::needless_pass_by_value)]

mod arrays;
mod attention;
mod boxes;
mod color_jitter;
mod errors;
mod image;
mod jpeg;
mod loader;
mod masks;
mod matrices;
mod pixels;
mod rand_augment;
mod record;
mod text;
mod tokenizer;
mod transform;

use pyo3::prelude::*;

/// Data pipeline of FIBER; see the type stub `_core.pyi`.
#[pymodule]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    let profile = if cfg!(debug_assertions) {
        "debug"
    } else {
        "release"
    };
    module.add("build_profile", profile)?;
    module.add("DecodeError", errors::decode_error(module.py())?)?;
    module.add_class::<arrays::Buffer>()?;
    module.add_class::<transform::ImageTransform>()?;
    module.add_class::<color_jitter::ColorJitter>()?;
    module.add_class::<rand_augment::RandAugment>()?;
    module.add_class::<tokenizer::Tokenizer>()?;
    module.add_class::<record::LoaderRecord>()?;
    module.add_class::<loader::Loader>()?;
    module.add_class::<loader::Session>()?;
    module.add_function(wrap_pyfunction!(image::probe_image, module)?)?;
    module.add_function(wrap_pyfunction!(image::decode_image, module)?)?;
    module.add_function(wrap_pyfunction!(image::read_image, module)?)?;
    module.add_function(wrap_pyfunction!(image::resize_image, module)?)?;
    module.add_function(wrap_pyfunction!(image::normalize_image, module)?)?;
    module.add_function(wrap_pyfunction!(transform::apply_transform, module)?)?;
    module.add_function(wrap_pyfunction!(jpeg::read_jpeg_header, module)?)?;
    module.add_function(wrap_pyfunction!(jpeg::decode_jpeg, module)?)?;
    module.add_function(wrap_pyfunction!(color_jitter::jitter_image, module)?)?;
    module.add_function(wrap_pyfunction!(rand_augment::augment_image, module)?)?;
    module.add_function(wrap_pyfunction!(attention::window_attention, module)?)?;
    module.add_function(wrap_pyfunction!(
        attention::window_attention_backward,
        module
    )?)?;
    module.add_function(wrap_pyfunction!(attention::cross_attention, module)?)?;
    module.add_function(wrap_pyfunction!(
        attention::cross_attention_backward,
        module
    )?)?;
    module.add_function(wrap_pyfunction!(matrices::linear_sum_assignment, module)?)?;
    module.add_function(wrap_pyfunction!(matrices::half_products, module)?)?;
    module.add_function(wrap_pyfunction!(masks::decode_masks, module)?)?;
    module.add_function(wrap_pyfunction!(masks::decode_id_map, module)?)?;
    module.add_function(wrap_pyfunction!(masks::encode_rle, module)?)?;
    module.add_function(wrap_pyfunction!(boxes::positive_map, module)?)?;
    module.add_function(wrap_pyfunction!(boxes::mirror_words, module)?)?;
    module.add_function(wrap_pyfunction!(loader::permutation, module)?)?;
    module.add_function(wrap_pyfunction!(loader::draw_below, module)?)?;
    Ok(())
}
