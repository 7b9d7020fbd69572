//! Images of a data set as files: decoding is that of [`steadfast_infer::images`], so a part is seen on the line as in
//! training.

use std::path::Path;

use image::{DynamicImage, ImageBuffer, Luma, Rgb};
use rayon::prelude::*;
use steadfast_infer::images;
pub use steadfast_infer::images::{Decoded, FORMAT_NAMES, bit_depth};

use super::{ImageShape, Images};
use crate::error::{At, Result};

/// Decodes an image as [`images::decode`] does.
///
/// # Errors
/// Another format, or a damaged or truncated file; `name` is named.
pub fn decode(bytes: &[u8], name: &Path, size: Option<(usize, usize)>, bit_depth: u32) -> Result<Decoded> {
    images::decode(bytes, size, bit_depth).at("decode", name)
}

/// An encoded image as the network's input `[channels, height, width]` in [0, 1].
///
/// # Errors
/// As for [`decode`].
pub fn preprocess(bytes: &[u8], name: &Path, shape: ImageShape, bit_depth: u32) -> Result<Vec<f32>> {
    images::preprocess(bytes, shape, bit_depth).at("decode", name)
}

/// Every image of a set in another shape, resized and then turned to grey or colour as [`images::decode`] does.
pub fn converted(images: Images, shape: ImageShape) -> Images {
    let ImageShape { channels, height, width } = images.shape;
    let image = |planes: &[u8]| -> Vec<u8> {
        let pixels = match channels {
            1 => ImageBuffer::<Luma<u8>, _>::from_raw(width as u32, height as u32, planes.to_vec())
                .map(DynamicImage::from),
            _ => ImageBuffer::<Rgb<u8>, _>::from_raw(width as u32, height as u32, interleaved(planes))
                .map(DynamicImage::from),
        };
        let pixels = pixels.expect("a plane has width * height bytes");
        images::resized(pixels, Some((shape.width, shape.height))).planes(shape.channels)
    };
    let bytes = images.bytes.par_chunks_exact(images.shape.len()).flat_map_iter(image).collect();
    Images { shape, bytes, ..images }
}

/// Three planes as pixels.
fn interleaved(planes: &[u8]) -> Vec<u8> {
    let plane = planes.len() / 3;
    (0..plane).flat_map(|i| [planes[i], planes[plane + i], planes[2 * plane + i]]).collect()
}

/// Planes in [0, 1], encoded as PNG.
pub fn encode_values(planes: &[f32], shape: ImageShape) -> Vec<u8> {
    let bytes: Vec<u8> = planes.iter().map(|value| (255.0 * value).round() as u8).collect();
    encode_png(&bytes, shape)
}

/// An image given as planes, encoded as PNG.
pub fn encode_png(planes: &[u8], shape: ImageShape) -> Vec<u8> {
    let (w, h) = (shape.width as u32, shape.height as u32);
    let image: DynamicImage = if shape.channels == 1 {
        ImageBuffer::<Luma<u8>, _>::from_raw(w, h, planes.to_vec()).expect("whole planes").into()
    } else {
        ImageBuffer::<Rgb<u8>, _>::from_raw(w, h, interleaved(planes)).expect("whole planes").into()
    };
    let mut png = std::io::Cursor::new(Vec::new());
    image.write_to(&mut png, image::ImageFormat::Png).expect("writing to memory does not fail");
    png.into_inner()
}
