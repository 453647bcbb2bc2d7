"""Byte-level byte-pair encoding from scratch: from text to ids and back, exactly as GPT-2 does it.

Read in this order: ``alphabet`` (bytes, and how GPT-2 spells them), ``pretokenize`` (text to words), ``bpe`` (the
algorithm, readable: encoding and training), then what makes it fast (``counting``, ``trainer``), what a tokenizer is
(``vocabulary``), the class that everybody uses (``tokenizer``), its files (``tokenizer_json``, ``formats``), and what
shows how well it fits a text (``inspection``).
"""
