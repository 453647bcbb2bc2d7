"""Colours and lines that every plot shares: told apart by the colour-blind, and in grey by their dashes."""

from __future__ import annotations

TRAIN, VAL = "#0072b2", "#d55e00"
LINES = (TRAIN, VAL, "#009e73", "#aa4499", "#e69f00", "#56b4e9")
"""After Okabe & Ito 2008, in lightness too."""
INK, RULE = "#444444", "#cccccc"
DASHES = ("solid", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 2, 1, 2)))
