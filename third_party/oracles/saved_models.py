"""What Transformers computes with folders that jaxcl has written.

Nothing is imported from jaxcl. Run by tests/test_interop/test_transformers.py, where the
environment variable JAXCL_TORCH names the Python of an environment with torch and
transformers (see decoders.py)::

    python third_party/oracles/saved_models.py FOLDER ...

Each folder has tokens.npy, ``[b, n]``; logits.npy is written beside it. It fails where
Transformers misses or does not use a tensor.
"""

import sys
from pathlib import Path

import numpy as np
import torch
import transformers


def main(folders):
    """Write the logits of each folder, computed in float32."""
    for folder in map(Path, folders):
        model, found = transformers.AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32,
            attn_implementation="eager",
            output_loading_info=True,
        )
        faults = {name: list(some) for name, some in found.items() if some}
        if faults:
            sys.exit(f"{folder}: {faults}")
        tokens = torch.tensor(np.load(folder / "tokens.npy"))
        with torch.no_grad():
            logits = model.eval()(tokens).logits.numpy()
        np.save(folder / "logits.npy", logits)
        print(folder.name, type(model).__name__, model.config.dtype, logits.shape)


if __name__ == "__main__":
    main(sys.argv[1:])
