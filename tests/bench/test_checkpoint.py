import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from bench.checkpoint import inference, load_model
from models.interface import DataSpec, Family
from tests.bench import scripted

DATA = DataSpec(vocab_size=10, max_source_length=5, max_target_length=5)


class Tied(scripted.Reverser):
    def __init__(self, config, data):
        super().__init__(config, data)
        self.embedding = nn.Embedding(2, 2)
        self.output = nn.Linear(2, 2, bias=False)
        self.output.weight = self.embedding.weight


@pytest.fixture
def load(tmp_path, monkeypatch):
    monkeypatch.setattr(
        scripted, "FAMILY", Family("tied", scripted.Config, scripted.Settings, Tied, autoregressive=True, title="")
    )

    def save_and_load(**tensors):
        save_file({name.replace("__", "."): t for name, t in tensors.items()}, tmp_path / "model.safetensors")
        return load_model("tests.bench.scripted", {}, DATA, tmp_path, "cpu")

    return save_and_load


VALUES = torch.arange(4.0).reshape(2, 2)


def test_a_model_is_filled_and_its_ties_stay(load):
    model = load(weight=torch.ones(3), embedding__weight=VALUES)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(model.weight, torch.ones(3))
    assert torch.equal(model.output.weight, VALUES)
    assert model.output.weight is model.embedding.weight


def test_a_missing_parameter_is_refused(load):
    with pytest.raises(ValueError, match=r"missing \['embedding.weight'\]"):
        load(weight=torch.ones(3))


def test_an_unknown_parameter_is_refused(load):
    with pytest.raises(ValueError, match=r"unknown \['more'\]"):
        load(weight=torch.ones(3), embedding__weight=VALUES, more=torch.ones(1))


def test_inference_has_no_gradient_and_full_precision_on_the_cpu():
    layer = nn.Linear(2, 2)
    with inference("cpu", "bfloat16"):
        result = layer(torch.ones(1, 2))
        assert torch.is_inference(result)
    assert result.dtype == torch.float32
