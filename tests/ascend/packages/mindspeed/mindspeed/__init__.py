"""A stand-in for MindSpeed `core_r0.16.0`: `megatron_adaptor` is what it is imported for."""
