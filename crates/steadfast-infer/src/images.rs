//! Decoding and resizing. Training and inspection both go through here, so a part is seen on the line as in training.

use alloc::string::ToString;
use alloc::vec;
use alloc::vec::Vec;
use std::io::Cursor;

use image::metadata::Orientation;
use image::{DynamicImage, ImageBuffer, ImageDecoder, ImageFormat, ImageReader, Limits, Luma, Rgb};
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use crate::error::{Error, Result, bail};
use crate::input::{ImageShape, from_planes};
use crate::micro::{Taps, luma, rounded, sum_rows};
#[cfg(feature = "simd")]
use steadfast_cpu::vectorise;

#[cfg(not(feature = "simd"))]
fn vectorise<R>(run: impl FnOnce() -> R) -> R {
    run()
}

/// The formats that are read, recognised by their content.
pub const FORMATS: [ImageFormat; 5] =
    [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::Bmp, ImageFormat::Tiff, ImageFormat::WebP];
/// How people call them.
pub const FORMAT_NAMES: &str = "PNG, JPEG, BMP, TIFF or WebP";
/// Bytes that the pixels of an image may take when it is decoded.
pub const MOST_BYTES: u64 = 1 << 30;
/// Bytes of pixels that a file may promise whatever its own size, and for each of its own beyond that. Formats hold a blank
/// image in next to nothing, so a damaged header could cost seconds and a GiB; deflate, as in PNG, reaches 1,032 to 1.
const PROMISED_BYTES: u64 = 16 << 20;
const PROMISED_PER_BYTE: u64 = 2_000;

/// One decoded image with interleaved channels.
pub struct Decoded {
    /// Pixels per row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// 1 (grey) or 3 (red, green, blue).
    pub channels: usize,
    /// The highest value of an image of 16 bits.
    pub highest: Option<u16>,
    bytes: Vec<u8>,
}

impl Decoded {
    /// The bytes as planes of `channels`: grey is repeated for 3, colour becomes luma for 1.
    pub fn planes(&self, channels: usize) -> Vec<u8> {
        let pixels = self.bytes.chunks_exact(self.channels);
        match (self.channels, channels) {
            (1, wanted) => self.bytes.repeat(wanted),
            (_, 1) => pixels.map(|p| luma([p[0], p[1], p[2]])).collect(),
            _ => {
                let mut planes = vec![0; self.bytes.len()];
                for (channel, plane) in planes.chunks_exact_mut((self.bytes.len() / 3).max(1)).enumerate() {
                    plane.iter_mut().zip(pixels.clone()).for_each(|(value, pixel)| *value = pixel[channel]);
                }
                planes
            }
        }
    }
}

/// An encoded image as the network's input `[channels, height, width]` in [0, 1].
///
/// # Errors
/// As for [`decode`].
pub fn preprocess(bytes: &[u8], shape: ImageShape, bit_depth: u32) -> Result<Vec<f32>> {
    let decoded = decode(bytes, Some((shape.width, shape.height)), bit_depth)?;
    Ok(from_planes(&decoded.planes(shape.channels)))
}

/// Whether a file that begins so is an image of a format that is read.
pub fn is_image(beginning: &[u8]) -> bool {
    image::guess_format(beginning).is_ok_and(|format| FORMATS.contains(&format))
}

/// How many bits the values of 16-bit images take whose highest value is this one: 8, 10, 12, 14 or 16.
pub fn bit_depth(highest: u16) -> u32 {
    [8, 10, 12, 14].into_iter().find(|&bits| u32::from(highest) < 1 << bits).unwrap_or(16)
}

/// Decodes an image, by its content, and resizes it to (width, height); `None` keeps its size. It is turned as its EXIF data
/// say; what is transparent is laid over white; values of 16 bits are taken for values of `bit_depth` bits, higher ones for
/// the highest of those; and an image whose channels are equal everywhere is grey.
///
/// # Errors
/// Another format, or a damaged or truncated file, or one of more than [`MOST_BYTES`], or of far more than its own size lets
/// expect.
pub fn decode(bytes: &[u8], size: Option<(usize, usize)>, bit_depth: u32) -> Result<Decoded> {
    let image = match image::guess_format(bytes) {
        Ok(ImageFormat::Jpeg) => decode_jpeg(bytes)?,
        Ok(format) if FORMATS.contains(&format) => decode_other(bytes, format)?,
        _ => bail!("not a {FORMAT_NAMES} image"),
    };
    let (highest, image) = opaque_bytes(image, bit_depth)?;
    Ok(Decoded { highest, ..resized(image, size) })
}

/// The bytes of pixels that a file of so many bytes may hold.
fn most_bytes(file: &[u8]) -> u64 {
    MOST_BYTES.min(PROMISED_BYTES + PROMISED_PER_BYTE * file.len() as u64)
}

fn check_size(pixels: u64, file: &[u8]) -> Result<()> {
    match pixels > most_bytes(file) {
        true => bail!(
            "its pixels take {} MiB, more than the {} MiB that a file of its size may have",
            pixels >> 20,
            most_bytes(file) >> 20
        ),
        false => Ok(()),
    }
}

fn decode_other(bytes: &[u8], format: ImageFormat) -> Result<DynamicImage> {
    let failed = |error: image::ImageError| Error::new(error.to_string());
    if format == ImageFormat::WebP {
        check_webp(bytes)?;
    }
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(most_bytes(bytes));
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(failed)?;
    check_size(decoder.total_bytes(), bytes)?;
    let orientation = decoder.orientation().map_err(failed)?;
    let mut image = DynamicImage::from_decoder(decoder).map_err(failed)?;
    image.apply_orientation(orientation);
    Ok(image)
}

/// Whether every chunk of a WebP lies in the file: the decoder asks for as much memory as a chunk claims before it reads it,
/// which on a machine of 32 bits may be more than there can be.
fn check_webp(file: &[u8]) -> Result<()> {
    let size =
        |at: usize| file.get(at + 4..at + 8).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]) as usize);
    let end = size(0).unwrap_or(0).min(file.len());
    let mut at = 12;
    while at < end
        && let Some(len) = size(at)
    {
        if len > file.len() - at - 8 {
            bail!("it is cut short: a chunk claims {len} bytes");
        }
        at += 8 + len.next_multiple_of(2);
    }
    Ok(())
}

fn decode_jpeg(bytes: &[u8]) -> Result<DynamicImage> {
    let failed = |error: zune_jpeg::errors::DecodeErrors| Error::new(error.to_string());
    let strict = DecoderOptions::default()
        .set_strict_mode(true)
        .set_max_width(usize::from(u16::MAX))
        .set_max_height(usize::from(u16::MAX));
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), strict);
    decoder.decode_headers().map_err(failed)?;
    let grey = decoder.input_colorspace() == Some(ColorSpace::Luma);
    let (colours, channels) = if grey { (ColorSpace::Luma, 1) } else { (ColorSpace::RGB, 3) };
    let Some((width, height)) = decoder.dimensions() else { bail!("it has no dimensions") };
    check_size(width as u64 * height as u64 * channels, bytes)?;
    decoder.set_options(strict.jpeg_set_out_colorspace(colours));
    let orientation = decoder.exif().and_then(|exif| Orientation::from_exif_chunk(exif));
    let pixels = decoder.decode().map_err(failed)?;
    let (width, height) = (width as u32, height as u32);
    let image = match grey {
        true => ImageBuffer::<Luma<u8>, _>::from_raw(width, height, pixels).map(DynamicImage::from),
        false => ImageBuffer::<Rgb<u8>, _>::from_raw(width, height, pixels).map(DynamicImage::from),
    };
    let Some(mut image) = image else { bail!("it has fewer pixels than its header promises") };
    image.apply_orientation(orientation.unwrap_or(Orientation::NoTransforms));
    Ok(image)
}

/// Bytes without transparency, and the highest value of an image of 16 bits.
fn opaque_bytes(image: DynamicImage, bit_depth: u32) -> Result<(Option<u16>, DynamicImage)> {
    let (width, height) = (image.width(), image.height());
    let (channels, alpha) = (image.color().channel_count(), image.color().has_alpha());
    let (highest, bytes) = match &image {
        DynamicImage::ImageLuma8(_) | DynamicImage::ImageRgb8(_) => return Ok((None, image)),
        DynamicImage::ImageLumaA8(pixels) => (None, opaque(pixels, channels, 8)),
        DynamicImage::ImageRgba8(pixels) => (None, opaque(pixels, channels, 8)),
        DynamicImage::ImageLuma16(pixels) => wide(pixels, channels, alpha, bit_depth),
        DynamicImage::ImageLumaA16(pixels) => wide(pixels, channels, alpha, bit_depth),
        DynamicImage::ImageRgb16(pixels) => wide(pixels, channels, alpha, bit_depth),
        DynamicImage::ImageRgba16(pixels) => wide(pixels, channels, alpha, bit_depth),
        _ => bail!("its pixels are {:?}, which is not read; save it with 8 or 16 bits", image.color()),
    };
    let image: Option<DynamicImage> = match channels {
        1 | 2 => ImageBuffer::<Luma<u8>, _>::from_raw(width, height, bytes).map(Into::into),
        _ => ImageBuffer::<Rgb<u8>, _>::from_raw(width, height, bytes).map(Into::into),
    };
    Ok((highest, image.expect("as many pixels as before")))
}

fn wide(pixels: &[u16], channels: u8, alpha: bool, bit_depth: u32) -> (Option<u16>, Vec<u8>) {
    let colours = usize::from(channels) - usize::from(alpha);
    let seen = pixels.chunks_exact(channels.into()).filter(|pixel| !alpha || pixel[colours] > 0);
    let highest = seen.flat_map(|pixel| &pixel[..colours]).max().copied();
    (Some(highest.unwrap_or(0)), opaque(pixels, channels, bit_depth))
}

/// The colours as bytes, laid over white by their alpha channel, which 2 and 4 channels have.
fn opaque<T: Copy + Into<u64>>(pixels: &[T], channels: u8, bit_depth: u32) -> Vec<u8> {
    let channels = usize::from(channels);
    let colours = channels - usize::from(channels.is_multiple_of(2));
    let full = (1_u64 << (8 * size_of::<T>())) - 1;
    let white = (1_u64 << bit_depth) - 1;
    let byte = |pixel: &[T], colour: usize| {
        let alpha = pixel.get(colours).map_or(full, |&alpha| alpha.into());
        let value = (pixel[colour].into().min(white) * alpha + white * (full - alpha) + full / 2) / full;
        ((255 * value + white / 2) / white) as u8
    };
    pixels
        .chunks_exact(channels)
        .flat_map(|pixel| (0..colours).map(move |colour| byte(pixel, colour)))
        .collect()
}

/// An image of 8 bits, opaque, at (width, height); `None` keeps its size. Grey where its channels are equal everywhere.
pub fn resized(image: DynamicImage, size: Option<(usize, usize)>) -> Decoded {
    let same = (image.width() as usize, image.height() as usize);
    let (width, height) = size.unwrap_or(same);
    let colour = image.as_rgb8().is_some_and(|pixels| pixels.pixels().any(|Rgb([r, g, b])| r != g || g != b));
    let (channels, bytes) = match image {
        colours if colour => (3, colours.into_rgb8().into_raw()),
        DynamicImage::ImageLuma8(pixels) => (1, pixels.into_raw()),
        equal => (1, equal.into_rgb8().pixels().map(|pixel| pixel.0[0]).collect()),
    };
    let (from, to) = ([same.1, same.0], [height, width]);
    let bytes = match channels {
        _ if from == to => bytes,
        1 => vectorise(
            #[inline(always)]
            || scaled::<1>(&bytes, from, to),
        ),
        _ => vectorise(
            #[inline(always)]
            || scaled::<3>(&bytes, from, to),
        ),
    };
    Decoded { width, height, channels, highest: None, bytes }
}

/// Pixels `[rows, columns, CHANNELS]` in another size, bit for bit as [`crate::micro::resize`] and the triangle filter of the `image` crate
/// make them, with the weights of the columns computed once.
#[inline(always)]
fn scaled<const CHANNELS: usize>(bytes: &[u8], [rows, columns]: [usize; 2], to: [usize; 2]) -> Vec<u8> {
    let taps: Vec<Taps> = (0..to[1]).map(|x| Taps::new(x, columns, to[1])).collect();
    let weights: Vec<f32> =
        taps.iter().flat_map(|taps| taps.range().map(|column| taps.weight(column))).collect();
    let mut sums = vec![0.0; columns * CHANNELS];
    let mut scaled = Vec::with_capacity(to[0] * to[1] * CHANNELS);
    for y in 0..to[0] {
        sum_rows(bytes, Taps::new(y, rows, to[0]), &mut sums);
        let mut weights = weights.iter();
        for taps in &taps {
            let mut pixel = [0.0_f32; CHANNELS];
            let seen =
                sums[taps.range().start * CHANNELS..taps.range().end * CHANNELS].chunks_exact(CHANNELS);
            for (values, weight) in seen.zip(weights.by_ref()) {
                pixel.iter_mut().zip(values).for_each(|(sum, value)| *sum += value * weight);
            }
            scaled.extend(pixel.map(rounded));
        }
    }
    scaled
}

#[cfg(test)]
mod tests {
    use image::imageops::{self, FilterType};

    use super::*;
    use crate::micro;

    /// What machines without an operating system do with a frame is what is done here, bit by bit.
    #[test]
    fn frames_become_what_images_become() {
        let sides = [1, 2, 3, 7, 16, 20, 31, 64, 97, 200];
        let mut random = 1_u32;
        for from in 0..sides.len() * sides.len() {
            let (width, height) = (sides[from % sides.len()], sides[from / sides.len()]);
            for (channels, to) in [(1, [16, 16, 1]), (3, [20, 13, 3]), (3, [16, 31, 1]), (1, [64, 64, 3])] {
                let frame: Vec<u8> = (0..width * height * channels)
                    .map(|_| {
                        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                        (random >> 24) as u8
                    })
                    .collect();
                let (w, h) = (width as u32, height as u32);
                let image: DynamicImage = match channels {
                    1 => ImageBuffer::<Luma<u8>, _>::from_raw(w, h, frame.clone()).unwrap().into(),
                    _ => ImageBuffer::<Rgb<u8>, _>::from_raw(w, h, frame.clone()).unwrap().into(),
                };
                let by_image = |image: &DynamicImage| {
                    let (w, h) = (to[1] as u32, to[0] as u32);
                    match image {
                        DynamicImage::ImageLuma8(pixels) => {
                            imageops::resize(pixels, w, h, FilterType::Triangle).into_raw()
                        }
                        colours => {
                            imageops::resize(&colours.to_rgb8(), w, h, FilterType::Triangle).into_raw()
                        }
                    }
                };
                let expected = by_image(&image);
                let decoded = resized(image, Some((to[1], to[0])));
                // Grey is one channel of it.
                let expected = expected.chunks_exact(channels).flat_map(|pixel| &pixel[..decoded.channels]);
                assert!(expected.eq(&decoded.bytes), "{width}x{height}x{channels} to {to:?}");
                let planes = decoded.planes(to[2]);
                let area = to[0] * to[1];
                let mut seen = vec![0; to.iter().product()];
                let shape = [height, width, channels];
                let mut scratch = vec![0.0; micro::resize_scratch(shape)];
                micro::resize(&frame, shape, to, &mut scratch, |at, byte| {
                    seen[at % to[2] * area + at / to[2]] = byte;
                });
                assert_eq!(seen, planes, "{shape:?} to {to:?}");
            }
        }
    }
}
