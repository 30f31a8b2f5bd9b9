//! Python bindings of fastsparse: converts, releases the GIL, maps errors, reads the environment.
//! No algorithm.

mod analysis;
mod array;
mod calibration;
mod checkpoint;
mod dlpack;
mod errors;
mod linear;
mod ops;
mod prepared;
mod runtime;
mod spec;

/// Native module of fastsparse; its interface is `_core.pyi`.
#[pyo3::pymodule]
mod _core {
    use pyo3::prelude::*;

    #[pymodule_export]
    use crate::analysis::{
        common_zeros, energies_by_rank, energies_of_largest, energy_of_mask, nonzero, uniform_blocks,
    };
    #[pymodule_export]
    use crate::calibration::{prune_columns, refine_step};
    #[pymodule_export]
    use crate::checkpoint::{
        CheckpointFolder, CheckpointReader, CheckpointWriter, TensorBytes, count_magnitudes, digest, rank_magnitudes,
        sum_of_squares,
    };
    #[pymodule_export]
    use crate::dlpack::{from_dlpack, to_dlpack};
    #[pymodule_export]
    use crate::linear::linear;
    #[pymodule_export]
    use crate::ops::{
        apply_mask, block_norms, blocks_above, check_bits, check_parts, check_pattern, compress, from_bool, pack,
        prune, select, to_bool, unpack,
    };
    #[pymodule_export]
    use crate::prepared::{
        index, lay_blocks, linear_blocks, linear_indexed, prefers_blocks, prefers_indices, unindex, unlay_blocks,
    };
    #[pymodule_export]
    use crate::runtime::{
        adopt_openmp, available_isas, build_profile, get_isa, get_num_threads, limit_threads, set_isa, set_num_threads,
        uses_openmp,
    };

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))?;
        crate::runtime::init(module.py())
    }
}
