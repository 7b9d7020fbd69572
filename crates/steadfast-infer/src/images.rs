//! Decoding and resizing. Training and inspection both go through here, so a part is seen on the line as in training.

use alloc::string::ToString;
use alloc::vec::Vec;

use image::imageops::FilterType;
use image::{DynamicImage, ImageBuffer, ImageFormat, Luma, Rgb, imageops};
use zune_jpeg::JpegDecoder;
use zune_jpeg::errors::DecodeErrors;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use crate::error::{Error, Result};
use crate::input::{ImageShape, from_planes};

/// The resize filter: bilinear, its support widened when an image shrinks (anti-aliased).
pub const RESIZE_FILTER: FilterType = FilterType::Triangle;

/// One decoded image with interleaved channels.
pub struct Decoded {
    /// Pixels per row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// 1 (grey) or 3 (red, green, blue).
    pub channels: usize,
    bytes: Vec<u8>,
}

impl Decoded {
    /// The bytes as planes of `channels`: grey is repeated for 3, colour becomes luma for 1.
    pub fn planes(&self, channels: usize) -> Vec<u8> {
        let pixels = self.bytes.chunks_exact(self.channels);
        match (self.channels, channels) {
            (1, wanted) => self.bytes.repeat(wanted),
            (_, 1) => pixels.map(|p| luma([p[0], p[1], p[2]])).collect(),
            _ => (0..3).flat_map(|channel| pixels.clone().map(move |pixel| pixel[channel])).collect(),
        }
    }
}

/// ITU-R BT.601 luma, as Pillow's `convert("L")` computes it.
fn luma([r, g, b]: [u8; 3]) -> u8 {
    ((u32::from(r) * 19_595 + u32::from(g) * 38_470 + u32::from(b) * 7_471 + 0x8000) >> 16) as u8
}

/// An encoded image as the network's input `[channels, height, width]` in [0, 1].
///
/// # Errors
/// As for [`decode`].
pub fn preprocess(bytes: &[u8], shape: ImageShape) -> Result<Vec<f32>> {
    let decoded = decode(bytes, Some((shape.width, shape.height)))?;
    Ok(from_planes(&decoded.planes(shape.channels)))
}

/// Decodes a PNG, JPEG or BMP image, by its content, and resizes it to (width, height); `None` keeps its size.
///
/// # Errors
/// Another format, or a damaged or truncated file.
pub fn decode(bytes: &[u8], size: Option<(usize, usize)>) -> Result<Decoded> {
    let image = match image::guess_format(bytes) {
        Ok(ImageFormat::Jpeg) => decode_jpeg(bytes).map_err(|error| Error::new(error.to_string()))?,
        _ => image::load_from_memory(bytes).map_err(|error| Error::new(error.to_string()))?,
    };
    Ok(resize(&image, size))
}

fn decode_jpeg(bytes: &[u8]) -> core::result::Result<DynamicImage, DecodeErrors> {
    let strict = DecoderOptions::default().set_strict_mode(true);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), strict);
    decoder.decode_headers()?;
    let grey = decoder.input_colorspace() == Some(ColorSpace::Luma);
    let colours = if grey { ColorSpace::Luma } else { ColorSpace::RGB };
    decoder.set_options(strict.jpeg_set_out_colorspace(colours));
    let pixels = decoder.decode()?;
    let (width, height) = decoder.dimensions().ok_or(DecodeErrors::FormatStatic("no dimensions"))?;
    let (width, height) = (width as u32, height as u32);
    let image = match grey {
        true => ImageBuffer::<Luma<u8>, _>::from_raw(width, height, pixels).map(DynamicImage::from),
        false => ImageBuffer::<Rgb<u8>, _>::from_raw(width, height, pixels).map(DynamicImage::from),
    };
    image.ok_or(DecodeErrors::FormatStatic("fewer pixels than its header promises"))
}

fn resize(image: &DynamicImage, size: Option<(usize, usize)>) -> Decoded {
    let same = (image.width() as usize, image.height() as usize);
    let (width, height) = size.unwrap_or(same);
    let scale = (width, height) != same;
    let (w, h) = (width as u32, height as u32);
    if image.color().has_color() {
        let pixels = image.to_rgb8();
        let pixels = if scale { imageops::resize(&pixels, w, h, RESIZE_FILTER) } else { pixels };
        Decoded { width, height, channels: 3, bytes: pixels.into_raw() }
    } else {
        let pixels = image.to_luma8();
        let pixels = if scale { imageops::resize(&pixels, w, h, RESIZE_FILTER) } else { pixels };
        Decoded { width, height, channels: 1, bytes: pixels.into_raw() }
    }
}
