import pytest
import torch


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    """The CUDA device named by --device, else the current one."""
    name = request.config.getoption("--device")
    return torch.device(name if name.startswith("cuda") else "cuda")


@pytest.fixture(autouse=True)
def float32_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch lets cuDNN round the operands of float32 convolutions to TF32: three digits."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
