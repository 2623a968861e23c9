"""
The model on disk: reading, checking, converting, making and fetching MLC-LLM model folders.

Owns the file formats: ``mlc-chat-config.json``, ``tensor-cache.json`` and its shards, Hugging Face checkpoints,
and the folder where models are installed. Knows no kernel, no engine and no request.

    config.py           ModelConfig, load_config: what a folder's configuration says
    manifest.py         tensor-cache.json, and verify_model: sizes and digests of the shards
    weights.py          open_weights: the tensors, memory-mapped
    quantization.py     group quantization: 4 bits, bit for bit MLC-LLM's, and edgephi's own 3 bits
    parameters.py       which tensors a Phi-3 has, their names on both sides, their order
    shards.py           ShardWriter: tensors into shards and their manifest
    chat_config.py      mlc-chat-config.json as MLC-LLM writes it
    checkpoint.py       Hugging Face safetensors, tensor by tensor
    convert.py          convert_checkpoint: checkpoint folder to MLC folder
    synth.py            synthesize: a model of random weights, with synth_tokenizer.py
    store.py            where models live
    pull.py             download, verify, install
    fields.py           JSON read field by field, with errors that name file, key and value
    staging.py          a folder that appears whole or not at all
"""
