"""Metrics of a reconstruction against the truth: images (PSNR, SSIM, MSE), records, perceptual distance (LPIPS)."""

from jaxinvert.metrics import perceptual, records
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
    "records",
    "relative_data_leakage",
    "ssim",
    "summarize",
]
