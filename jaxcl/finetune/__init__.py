"""Fine-tune a language model on one file after another: ``jaxcl finetune``."""
