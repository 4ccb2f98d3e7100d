"""Decodes with eai-sparsify's `decoder_impl`, and takes its encoder's gradient.

Its kernel is written in Triton and for a GPU; on a CPU it decodes with `embedding_bag`. The
gradients are those of its autograd functions.
"""

from __future__ import annotations

import os
from types import SimpleNamespace

import torch

from benchmarks.peers.decoding_protocol import Products, Work, serve

if not torch.cuda.is_available():
    os.environ["SPARSIFY_DISABLE_TRITON"] = "1"  # its kernel takes tensors on a GPU only

from sparsify.fused_encoder import FusedEncoder
from sparsify.utils import decoder_impl


def decode(work: Work) -> Products:
    """Decode, and go back to both matrices."""
    values, W_dec = (t.detach().requires_grad_() for t in (work.values, work.W_dec))
    output = decoder_impl(work.features, values, W_dec.mT)
    at_values, at_W_dec = torch.autograd.grad(output, (values, W_dec), work.at_output)
    # What its `forward`, whose matrix product is not part of the work, leaves for `backward`.
    saved = SimpleNamespace(
        saved_tensors=(work.x, work.W_dec, None, work.features),
        needs_input_grad=(False, True, False),
    )
    at_W_enc_T = FusedEncoder.backward(saved, at_values, None, None)[1]
    return Products(output.detach(), at_values, at_W_dec, at_W_enc_T)


if __name__ == "__main__":
    serve("eai-sparsify", decode)
