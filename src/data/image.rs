//! Images of a data set as files: decoding is that of [`steadfast_infer::images`], so a part is seen on the line as in
//! training.

use std::path::Path;

use image::{DynamicImage, ImageBuffer, Luma, Rgb, imageops};
use rayon::prelude::*;
use steadfast_infer::images;
pub use steadfast_infer::images::{Decoded, RESIZE_FILTER};

use super::{ImageShape, Images};
use crate::error::{At, Result};

/// Decodes a PNG, JPEG or BMP image, by its content, and resizes it to (width, height); `None` keeps its size.
///
/// # Errors
/// Another format, or a damaged or truncated file; `name` is named.
pub fn decode(bytes: &[u8], name: &Path, size: Option<(usize, usize)>) -> Result<Decoded> {
    images::decode(bytes, size).at("decode", name)
}

/// An encoded image as the network's input `[channels, height, width]` in [0, 1].
///
/// # Errors
/// As for [`decode`].
pub fn preprocess(bytes: &[u8], name: &Path, shape: ImageShape) -> Result<Vec<f32>> {
    images::preprocess(bytes, shape).at("decode", name)
}

/// Every image of a set resized to `size` x `size`.
pub fn resize_all(images: Images, size: usize) -> Images {
    let ImageShape { channels, height, width } = images.shape;
    let shape = ImageShape { channels, height: size, width: size };
    let plane = |bytes: &[u8]| -> Vec<u8> {
        let plane: ImageBuffer<Luma<u8>, _> = ImageBuffer::from_raw(width as u32, height as u32, bytes)
            .expect("a plane has width * height bytes");
        imageops::resize(&plane, size as u32, size as u32, RESIZE_FILTER).into_raw()
    };
    let bytes = images.bytes.par_chunks_exact(height * width).flat_map_iter(plane).collect();
    Images { shape, bytes, labels: images.labels }
}

/// An image given as planes, encoded as PNG.
pub fn encode_png(planes: &[u8], shape: ImageShape) -> Vec<u8> {
    let (w, h) = (shape.width as u32, shape.height as u32);
    let image: DynamicImage = if shape.channels == 1 {
        ImageBuffer::<Luma<u8>, _>::from_raw(w, h, planes.to_vec()).expect("whole planes").into()
    } else {
        let plane = shape.height * shape.width;
        let pixels = (0..plane).flat_map(|i| [planes[i], planes[plane + i], planes[2 * plane + i]]).collect();
        ImageBuffer::<Rgb<u8>, _>::from_raw(w, h, pixels).expect("whole planes").into()
    };
    let mut png = std::io::Cursor::new(Vec::new());
    image.write_to(&mut png, image::ImageFormat::Png).expect("writing to memory does not fail");
    png.into_inner()
}
