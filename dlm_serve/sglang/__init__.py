"""Where decoding meets SGLang: its requests and batches, its workers, attention, sampler and CUDA graphs."""
