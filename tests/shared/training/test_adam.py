import pytest
import torch

from shared.training.adam import Adam


def parameters():
    generator = torch.Generator().manual_seed(0)
    return {"W": torch.randn(7, 5, generator=generator), "b": torch.randn(7, generator=generator)}


def gradients(step):
    generator = torch.Generator().manual_seed(100 + step)
    return {"W": torch.randn(7, 5, generator=generator), "b": torch.randn(7, generator=generator)}


@pytest.mark.parametrize("epsilon", [1e-8, 6.25e-10])
def test_it_equals_torch_bit_by_bit(epsilon):
    ours, theirs = parameters(), parameters()
    adam = Adam(ours, lr=0.01, epsilon=epsilon)
    reference = torch.optim.Adam(theirs.values(), lr=0.01, eps=epsilon, fused=True)
    for step in range(20):
        adam.step(gradients(step))
        for name, tensor in theirs.items():
            tensor.grad = gradients(step)[name]
        reference.step()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor)


def test_a_transposed_gradient_reaches_the_right_entries():
    plain, transposed = parameters(), parameters()
    gradient = gradients(0)
    Adam(plain, 0.01).step(gradient)
    Adam(transposed, 0.01).step({**gradient, "W": gradient["W"].T.contiguous().T})
    assert torch.equal(plain["W"], transposed["W"])


def test_reset_forgets_the_named_rows_and_no_others():
    adam = Adam(parameters(), 0.01)
    adam.step(gradients(0))
    before = {name: tensor.clone() for name, tensor in adam.state.items()}
    adam.reset(("W",), torch.tensor([2, 5]))
    for name, tensor in adam.state.items():
        changed = {"mean.W", "square.W"}
        expected = before[name].clone()
        if name in changed:
            assert expected[[2, 5]].all()
            expected[[2, 5]] = 0
        assert torch.equal(tensor, expected), name
