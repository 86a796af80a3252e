"""Which device is taken, and in which precision."""

import pytest
import torch

from memlib.base.errors import InputError
from memlib.models import substrate as substrates
from memlib.models.devices import bfloat16_pays, device_of


def test_devices_by_name():
    assert device_of("cpu") == torch.device("cpu")
    assert device_of("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(InputError, match="use auto, cpu, cuda"):
        device_of("gpu")


def test_bfloat16_follows_the_processor_flags(monkeypatch):
    for flags, pays in (("flags : avx2 avx512f", False), ("flags : avx512f avx512_bf16", True), ("flags : amx_bf16", True)):
        monkeypatch.setattr("memlib.models.devices.Path.read_text", lambda self, flags=flags: flags)
        assert bfloat16_pays(torch.device("cpu")) is pays
        assert substrates.dtype_of("auto", torch.device("cpu")) is (torch.bfloat16 if pays else torch.float32)


def test_a_machine_without_cpuinfo_computes_in_float32(monkeypatch):
    def missing(self):
        raise FileNotFoundError

    monkeypatch.setattr("memlib.models.devices.Path.read_text", missing)
    assert not bfloat16_pays(torch.device("cpu"))
