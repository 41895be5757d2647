"""How fast language models learn and write, beside Transformers and PEFT."""
