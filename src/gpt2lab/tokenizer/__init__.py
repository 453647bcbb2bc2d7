"""Byte-level byte-pair encoding from scratch: from text to ids and back, exactly as in GPT-2.

Reading order:

1. ``pretokenize``: a text splits into words.
2. ``bpe``: the bytes and their characters; the readable algorithm, encoding and training; the vocabulary; encoding by
   tiktoken's core.
3. ``train``: counting words and finding merges at full size.
4. ``formats``: the files of other programs.
5. ``tokenizer``: :class:`~gpt2lab.tokenizer.tokenizer.Tokenizer`, which everything else uses.
"""
