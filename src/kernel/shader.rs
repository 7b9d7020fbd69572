//! A shader: its text, the names of its scalars, its variants, and how it is launched.

use std::hash::{Hash, Hasher};
use std::sync::OnceLock;

use burn::backend::DispatchDevice;
use burn::cubecl::prelude::{CubeCount, ExecutionMode, KernelId};
use burn::cubecl::server::{KernelArguments, MetadataBindingInfo};
use burn::tensor::{DType, Device, Shape};
use burn_wgpu::{CubeDim, CubeTensor, KernelSource, SourceKernel, SourceTemplate};

/// Invocations per workgroup where a shader does not say otherwise.
pub(super) const WORKGROUP: usize = 256;
/// Workgroups that every API allows in one dimension.
const MAX_WORKGROUPS: usize = 65_535;

/// Whether tensors of this device are computed by WGSL.
pub fn runs_wgsl(device: &Device) -> bool {
    // With Burn's SPIR-V compiler WGSL does not run.
    !cfg!(feature = "spirv")
        && matches!(device.clone().without_autodiff().as_dispatch(), DispatchDevice::Cube(_))
}

/// The text of a shader as shipped.
///
/// Its scalars are what it reads as `info[NAME]`, each with a line `const NAME: u32 = 34u;` that gives its place: info
/// holds values of two words, so places are even.
#[derive(Debug)]
pub struct Source {
    /// Name of its file in `shaders/`, without the ending.
    pub name: &'static str,
    /// The WGSL.
    pub text: &'static str,
    scalars: OnceLock<Vec<&'static str>>,
}

impl Source {
    pub(super) const fn new(name: &'static str, text: &'static str) -> Self {
        Self { name, text, scalars: OnceLock::new() }
    }

    /// The names of the scalars, in the order in which info holds them.
    ///
    /// # Panics
    /// A scalar without a name, or places that leave gaps.
    pub fn scalars(&self) -> &[&'static str] {
        self.scalars.get_or_init(|| self.read_scalars())
    }

    fn read_scalars(&self) -> Vec<&'static str> {
        let code = || self.text.lines().map(|line| line.split("//").next().unwrap_or(line));
        let place = |name: &str| -> usize {
            let value = code().find_map(|line| {
                line.strip_prefix("const ")?.strip_prefix(name)?.strip_prefix(": u32 = ")?.strip_suffix("u;")
            });
            value.and_then(|value| value.parse().ok()).unwrap_or_else(|| {
                panic!("shader {}: info[{name}] needs a line `const {name}: u32 = ..u;`", self.name)
            })
        };
        let mut scalars: Vec<(usize, &'static str)> = code()
            .flat_map(|line| line.split("info[").skip(1))
            .map(|after| after.split(']').next().unwrap_or(after))
            .map(|name| (place(name), name))
            .collect();
        scalars.sort_unstable();
        scalars.dedup();
        for (index, (place, name)) in scalars.iter().enumerate() {
            assert!(*place == 2 * index, "shader {}: {name} has place {place}, not {}", self.name, 2 * index);
        }
        scalars.into_iter().map(|(_, name)| name).collect()
    }
}

// There is one source of a name.
impl PartialEq for Source {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Source {}

impl Hash for Source {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name.hash(state);
    }
}

/// A shader, with other values for some of its constants.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Shader {
    source: &'static Source,
    workgroup: usize,
    constants: Vec<(&'static str, usize)>,
}

impl std::fmt::Debug for Shader {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "{} {:?}", self.source.name, self.constants)
    }
}

impl Shader {
    /// As shipped, in workgroups of 256 invocations.
    pub(super) fn new(source: &'static Source) -> Self {
        Self { source, workgroup: WORKGROUP, constants: Vec::new() }
    }

    /// With workgroups of another size, which the shader also calls `WORKGROUP`.
    pub(super) fn workgroup(self, invocations: usize) -> Self {
        Self { workgroup: invocations, ..self.with("WORKGROUP", invocations) }
    }

    /// With another value for a constant, a `u32`.
    pub(super) fn with(mut self, constant: &'static str, value: usize) -> Self {
        self.constants.push((constant, value));
        self
    }

    /// What is compiled.
    pub fn text(&self) -> String {
        self.constants.iter().fold(self.source.text.to_string(), |text, (constant, value)| {
            let declaration = format!("const {constant}: u32 = ");
            let (before, after) = text.split_once(&declaration).expect("a constant of the shader");
            let (_, after) = after.split_once(';').expect("the end of a declaration");
            format!("{before}{declaration}{value}u;{after}")
        })
    }

    /// Begins a launch: its scalars are set next.
    pub(super) fn launch(self) -> Launch {
        Launch { values: vec![None; self.source.scalars().len()], shader: self }
    }
}

impl KernelSource for Shader {
    fn source(&self) -> SourceTemplate {
        SourceTemplate::new(self.text())
    }

    fn id(&self) -> KernelId {
        // Unchecked: no counter that ends endless loops, which would keep the compiler from unrolling the finite ones.
        KernelId::new::<Self>().info(self.clone()).mode(ExecutionMode::Unchecked)
    }

    fn lang(&self) -> &'static str {
        "wgsl"
    }
}

/// What a shader takes as a scalar: the 32 bits that it reads.
pub(super) trait Scalar {
    fn bits(self) -> u32;
}

impl Scalar for u32 {
    fn bits(self) -> u32 {
        self
    }
}

impl Scalar for usize {
    fn bits(self) -> u32 {
        self as u32
    }
}

impl Scalar for isize {
    fn bits(self) -> u32 {
        self as i32 as u32
    }
}

impl Scalar for f32 {
    fn bits(self) -> u32 {
        self.to_bits()
    }
}

impl Scalar for bool {
    fn bits(self) -> u32 {
        u32::from(self)
    }
}

/// One launch of a shader; every scalar is set by its name, once.
pub(super) struct Launch {
    shader: Shader,
    values: Vec<Option<u32>>,
}

impl Launch {
    /// # Panics
    /// The shader has no such scalar, or it is set already.
    pub(super) fn set(mut self, name: &str, value: impl Scalar) -> Self {
        let source = self.shader.source;
        let place = source.scalars().iter().position(|scalar| *scalar == name);
        let place = place.unwrap_or_else(|| panic!("shader {} has no scalar {name}", source.name));
        let before = self.values[place].replace(value.bits());
        assert!(before.is_none(), "shader {}: {name} is set twice", source.name);
        self
    }

    /// Sets several scalars of one kind.
    pub(super) fn set_each<const N: usize>(self, names: [&str; N], values: [impl Scalar; N]) -> Self {
        names.into_iter().zip(values).fold(self, |launch, (name, value)| launch.set(name, value))
    }

    /// The scalars in the order of info.
    fn info(&self) -> Vec<u64> {
        let Shader { source, .. } = self.shader;
        let pairs = self.values.iter().zip(source.scalars());
        let value = |(value, name): (&Option<u32>, &&str)| {
            u64::from(value.unwrap_or_else(|| panic!("shader {}: {name} is not set", source.name)))
        };
        pairs.map(value).collect()
    }

    /// Queues it over `invocations` (one workgroup for 0): inputs, then outputs, as the shader binds them.
    ///
    /// # Panics
    /// A scalar is not set.
    pub(super) fn run(self, invocations: usize, tensors: &[&CubeTensor]) {
        let groups = invocations.div_ceil(self.shader.workgroup).max(1);
        let across = groups.min(MAX_WORKGROUPS);
        let count = CubeCount::Static(across as u32, groups.div_ceil(across) as u32, 1);
        let buffers = tensors.iter().map(|tensor| tensor.handle.clone().binding()).collect();
        let info = MetadataBindingInfo::custom(self.info());
        let arguments = KernelArguments::new().with_buffers(buffers).with_info(info);
        let size = CubeDim::new_1d(self.shader.workgroup as u32);
        let kernel = SourceKernel::new(self.shader, size);
        tensors[0].client.launch(Box::new(kernel), count, arguments);
    }
}

/// An uninitialised contiguous float tensor beside `like`.
pub(super) fn empty_like(like: &CubeTensor, shape: Shape) -> CubeTensor {
    let handle = like.client.empty(shape.num_elements() * size_of::<f32>());
    CubeTensor::new_contiguous(like.client.clone(), like.device.clone(), shape, handle, DType::F32)
}

/// Values from one place to the next at which a tensor may begin in a buffer, on every adapter: WebGPU promises an alignment of
/// 256 bytes.
pub(super) const ALIGNMENT: usize = 64;

/// A contiguous tensor in a part of another one's buffer; `place`, where it begins, is a multiple of [`ALIGNMENT`].
pub(super) fn part_of(whole: &CubeTensor, place: usize, shape: Shape) -> CubeTensor {
    let after = whole.meta.num_elements() - place - shape.num_elements();
    let bytes = |values: usize| (values * size_of::<f32>()) as u64;
    let handle = whole.handle.clone().offset_start(bytes(place)).offset_end(bytes(after));
    CubeTensor::new_contiguous(whole.client.clone(), whole.device.clone(), shape, handle, DType::F32)
}

/// Several uninitialised ones in one buffer, which a shader binds once: it, they, and the place in it where each begins, in values.
pub(super) fn empty_together<const N: usize>(
    like: &CubeTensor,
    shapes: [Shape; N],
) -> (CubeTensor, [CubeTensor; N], [usize; N]) {
    let mut length = 0;
    let places = shapes.each_ref().map(|shape| {
        let place = length;
        length += shape.num_elements().next_multiple_of(ALIGNMENT);
        place
    });
    let whole = empty_like(like, Shape::new([length]));
    let parts = std::array::from_fn(|part| part_of(&whole, places[part], shapes[part].clone()));
    (whole, parts, places)
}

#[cfg(test)]
mod tests {
    use super::*;

    static SOURCE: Source = Source::new(
        "example",
        "const SIZE: u32 = 4u;\n\
         const COUNT: u32 = 0u;\n\
         const RATE: u32 = 2u;\n\
         // info[NOT_CODE]\n\
         fn f() -> f32 { return f32(info[COUNT] * SIZE) * bitcast<f32>(info[RATE]) + f32(info[COUNT]); }\n",
    );

    #[test]
    fn scalars_arrive_in_the_order_of_their_places() {
        assert_eq!(SOURCE.scalars(), ["COUNT", "RATE"]);
        let launch = Shader::new(&SOURCE).launch().set("RATE", 0.5).set("COUNT", 7usize);
        assert_eq!(launch.info(), [7, u64::from(0.5f32.to_bits())]);
        let launch = Shader::new(&SOURCE).launch().set_each(["COUNT", "RATE"], [-1isize, 2]);
        assert_eq!(launch.info(), [u64::from(u32::MAX), 2]);
    }

    #[test]
    #[should_panic = "shader example has no scalar SIZE"]
    fn an_unknown_name_is_refused() {
        Shader::new(&SOURCE).launch().set("SIZE", 1usize);
    }

    #[test]
    #[should_panic = "shader example: COUNT is set twice"]
    fn a_name_is_set_once() {
        Shader::new(&SOURCE).launch().set("COUNT", 1usize).set("COUNT", 1usize);
    }

    #[test]
    #[should_panic = "shader example: RATE is not set"]
    fn every_scalar_is_set() {
        Shader::new(&SOURCE).launch().set("COUNT", 1usize).info();
    }

    #[test]
    #[should_panic = "shader example: info[2u] needs a line `const 2u: u32 = ..u;`"]
    fn a_place_without_a_name_is_refused() {
        Source::new("example", "let x = info[2u];").scalars();
    }

    #[test]
    #[should_panic = "shader example: TWO has place 2, not 0"]
    fn places_leave_no_gap() {
        Source::new("example", "const TWO: u32 = 2u;\nlet x = info[TWO];").scalars();
    }
}
