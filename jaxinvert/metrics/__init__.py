"""Metrics of a reconstruction against the truth: images (PSNR, SSIM, MSE), records, recognition (HaarPSI), LPIPS."""

from jaxinvert.metrics import perceptual, recognition, records
from jaxinvert.metrics.images import (
    MAX_PSNR_DB,
    Distribution,
    Quality,
    Summary,
    distribution,
    evaluate,
    match_one_to_one,
    mse,
    psnr,
    relative_data_leakage,
    ssim,
    summarize,
)

__all__ = [
    "MAX_PSNR_DB",
    "Distribution",
    "Quality",
    "Summary",
    "distribution",
    "evaluate",
    "match_one_to_one",
    "mse",
    "perceptual",
    "psnr",
    "recognition",
    "records",
    "relative_data_leakage",
    "ssim",
    "summarize",
]
