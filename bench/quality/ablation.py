"""Does the Fourier module earn its place?  Decoders that differ in it alone, trained alike from the same start.

    python -m bench.quality.ablation TRAIN VAL --out out/ablation --table bench/results/ablation.csv

Every arm starts from the same encoder (of `--init`) and a decoder of its own from the same seed, sees the same crops
and clicks in the same order, and is evaluated alike: plain modules, no refiner.  An arm that was killed goes on where
it was; one that has ended is not run again.  The encoder comes from a network with the multi-axis module, which
favours that arm a little, if any.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from safetensors.torch import load_file
from torch import nn

from activefreq_engine import Engine
from activefreq_engine.eval import Report, evaluate, load_dataset, metrics, read_json, write_json
from activefreq_engine.models import FreqFormer, create_model, load_checkpoint
from activefreq_engine.models.freqnet import FreqBlock
from activefreq_engine.runtime.engine import resolve_device
from activefreq_engine.train.loop import TrainConfig, train
from bench.tools import rows
from bench.tools.machine import Machine


class DepthWise(nn.Conv2d):
    """Takes the place of `FreqModule`: a depth-wise convolution of all channels, 81 weights each where that has 83."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 9, padding=4, groups=channels)


@dataclass(frozen=True)
class Arm:
    """One decoder."""

    overrides: Mapping[str, Any] = field(default_factory=dict)  # of the model's configuration
    module: Callable[[int], nn.Module] | None = None  # in the place of `FreqModule`, for so many channels

    def start(self, source: FreqFormer, seed: int) -> FreqFormer:
        """`source`'s encoder and click embedding, a new decoder."""
        torch.manual_seed(seed)
        model = create_model(refiner_width=0, **self.overrides)
        if self.module is not None:
            for block in model.decoder.modules():
                if isinstance(block, FreqBlock):
                    block.freq = self.module(block.fc2.out_channels)
        model.encoder.load_state_dict(source.encoder.state_dict())
        model.click_embed.load_state_dict(source.click_embed.state_dict())
        return model


REFERENCE = "multi-axis"
ARMS = {
    REFERENCE: Arm(),
    "(H, W) only": Arm({"axes": "hw"}),
    "no filter": Arm({"filter": "none"}),
    "depth-wise 9x9": Arm(module=DepthWise),
}


def table(reports: Mapping[str, Report], parameters: Mapping[str, int], steps: int) -> list[dict[str, Any]]:
    """A row an arm, with its difference from the multi-axis module's and the 95 % BCa interval over images."""
    reference = reports[REFERENCE].curves
    out = []
    for name, report in reports.items():
        found, curves = report.metrics(), report.curves
        more = 100 * (curves[:, 1].astype(float) - reference[:, 1])
        clicks = metrics.noc(curves, 0.9) - metrics.noc(reference, 0.9)
        miou_range = metrics.bootstrap_interval(more) or (None, None)
        noc_range = metrics.bootstrap_interval(clicks) or (None, None)
        out.append(
            {
                "arm": name,
                "decoder_parameters": parameters[name],
                "steps": steps,
                **{f"miou{k}": 100 * v for k, v in found["miou"].items()},
                **{k: found[k] for k in ("noc85", "noc90")},
                "miou2_more": float(np.mean(more)),
                "miou2_more_low": miou_range[0],
                "miou2_more_high": miou_range[1],
                "noc90_more": float(np.mean(clicks)),
                "noc90_more_low": noc_range[0],
                "noc90_more_high": noc_range[1],
            }
        )
    return out


def main(
    train_data: Annotated[Path, typer.Argument(metavar="TRAIN", help="folder with images/ and masks/")],
    val_data: Annotated[Path, typer.Argument(metavar="VAL", help="images with truth, as `activefreq eval` reads them")],
    out: Annotated[Path, typer.Option(help="folder of the runs")],
    csv: Annotated[Path, typer.Option("--table", help="the table, CSV")],
    init: Annotated[str, typer.Option(help="shipped model, or checkpoint, whose encoder all arms start from")] = (
        "freqformer_b0"
    ),
    steps: Annotated[int, typer.Option(min=1, help="training steps an arm")] = 500,
    size: Annotated[int, typer.Option(min=32, help="crop size, pixels")] = 192,
    batch: Annotated[int, typer.Option(min=1, help="crops a step")] = 16,
    clicks: Annotated[int, typer.Option(min=2, max=20, help="clicks an image, and the NoC of a failure")] = 10,
    limit: Annotated[int | None, typer.Option(min=1, help="evaluate on the first images only")] = None,
    packed: Annotated[Path | None, typer.Option(help="packed training data to share; default: out/data")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda")] = "auto",
) -> None:
    """Train and evaluate every arm, then write the table."""
    data = load_dataset(val_data, limit=limit)
    source = load_checkpoint(init) if Path(init).exists() else create_model(init, pretrained=True)
    reports: dict[str, Report] = {}
    parameters = {}
    for number, (name, arm) in enumerate(ARMS.items()):
        folder = out / str(number)
        model = arm.start(source, seed=0)
        parameters[name] = sum(p.numel() for p in model.decoder.parameters())
        if not (folder / "report.json").exists():
            config = TrainConfig(
                data=(str(train_data),),
                overrides={"refiner_width": 0, **arm.overrides},
                steps=steps,
                batch=batch,
                sizes=((0.0, size),),
                warmup=min(50, steps),
                ema=0.99,
                workers=1,
            )
            weights = train(config, folder, device=device, packed=packed or out / "data", model=model)
            model.load_state_dict(load_file(weights))
            engine = Engine(model.eval(), device=device, plan=False)
            report = evaluate(data, model=name, engine=engine, refine=False, max_clicks=clicks)
            write_json(report, folder / "report.json")
        reports[name] = read_json(folder / "report.json")
        typer.echo(f"{name}: {reports[name].metrics()['miou']}, NoC@90 {reports[name].metrics()['noc90']:.2f}")
    rows.write(csv, table(reports, parameters, steps), Machine(str(resolve_device(device))).describe(), replace="arm")


if __name__ == "__main__":
    typer.run(main)
