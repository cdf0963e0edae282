"""Recorded numbers of evaluation: FVD's preparation of frames, Fréchet distance, PSNR."""

from __future__ import annotations

from megatron_videogpt.evaluate.metrics import frechet_distance, psnr, resize_crop
from megatron_videogpt.objective.recorded import Cases, Report


def check_evaluation(cases: Cases, report: Report) -> None:
    """Every case of evaluation.json."""
    for case in cases:
        name, tensors = case["name"], {key: cases.get(case, key) for key in case["tensors"]}
        if case["kind"] == "resize_crop":
            ours = resize_crop(tensors["x"], case["resolution"], case["normalize"])
            report.compare("resize and crop", ours, tensors["y"], name)
        elif case["kind"] == "frechet":
            distance = frechet_distance(tensors["fake"], tensors["real"])
            report.add("Frechet distance", abs(distance - case["value"]) / case["value"], name)
        elif case["kind"] == "psnr":
            report.compare("PSNR", psnr(tensors["a"], tensors["b"]), tensors["psnr"], name)
        else:
            report.add(f"unknown kind {case['kind']!r}", float("inf"), name)
