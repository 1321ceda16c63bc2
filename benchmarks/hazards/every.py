"""All hazards, in the order of the table."""

from benchmarks.hazards import afterwards, answers, crashes, endings, load
from benchmarks.hazards.catalogue import of_module

HAZARDS = tuple(
    hazard
    for module in (answers, endings, afterwards, load, crashes)
    for hazard in of_module(module.__name__)
)
