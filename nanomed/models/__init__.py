"""The networks, and what a family of them has to provide. Everything else here works on any family without
knowing which.

A family is a module (gpt2.py, gpt_neo.py, llama.py, gemma.py) with these names in it, a page to read from
top to bottom:

    ARCHITECTURES  {model_type: (language model's, classifier's name)}, as config.json has them
    DEFAULTS       {model_type: {field: value}} that config.json leaves out, where members of a family differ
    Config         a frozen dataclass of config.json's fields that change what is computed, with Hugging
                   Face's names and defaults; raises UserError for what is not honoured. Also, whatever
                   Hugging Face calls them: vocab_size, n_positions, n_embd, cache_shape: (layers, heads of
                   keys and values, size of a head), model_type, tie_word_embeddings, initializer_range
    FIXED          {key: the only value that is supported} of config.json, beside hub.config.FIXED
    INERT          its other keys, which change nothing that is computed here
    DROPOUTS       Config's fields that are probabilities of dropout
    Transformer    the network below the head: Transformer(config)(idx, pos, mask, cache) -> hidden states
                   (B, T, C), with Hugging Face's parameter names; mask: attention.Mask; cache: a
                   cache.KVCache a layer; grad_checkpoint is False until someone sets it
    BACKBONE       Hugging Face's name for that network in a model, the first part of its parameters' names
    EMBEDDING      the input embedding's name, which the head may be tied to
    CONV1D         ends of names of weights that files keep as (in, out), transposed at load and at save
    BUFFERS        ends of names of tensors in old files that are no weights
    RESIDUAL       ends of names of the projections onto the residual stream, which from-scratch
                   initialisation scales down
    LORA_TARGETS   which linear layers an adapter wraps by default, as peft has it

The head, its tie to the embedding and the model around both are language_model.py, for all of them."""

from nanomed.models import gemma, gpt2, gpt_neo, llama

PAGES = (gpt2, gpt_neo, llama, gemma)
FAMILIES = {model_type: family for family in PAGES for model_type in family.ARCHITECTURES}
