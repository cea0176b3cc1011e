"""What each kernel of a layer takes alone: python3 tests/gpu_profile.py PROFILE.csv decode|prefill

PROFILE.csv is what `ncu --csv --metrics gpu__time_duration.sum` wrote of the example `gpu`. A layer is what runs from one attention
of that kind to the next; those that launch what most do are counted, so not the last of a step.
"""

import collections
import csv
import statistics
import sys

MICROSECONDS = {"nsecond": 1e-3, "ns": 1e-3, "usecond": 1.0, "us": 1.0, "msecond": 1e3, "ms": 1e3}


def launches(path):
    """Name, grid and microseconds of each launch."""
    with open(path) as file:
        for row in csv.DictReader(line for line in file if line.startswith('"')):
            if row["Metric Name"] == "gpu__time_duration.sum":
                took = float(row["Metric Value"].replace(",", "")) * MICROSECONDS[row["Metric Unit"]]
                yield row["Kernel Name"].split("(")[0], row["Grid Size"], took


def main():
    path, attention = sys.argv[1:]
    layers = []
    for name, grid, took in launches(path):
        if name.startswith(attention):
            layers.append([])
        if layers:
            layers[-1].append((name, grid, took))
    kinds = collections.Counter(tuple(launch[:2] for launch in layer) for layer in layers)
    if not kinds:
        sys.exit(f"{path} has no launch of {attention}")
    kind, count = kinds.most_common(1)[0]
    counted = [layer for layer in layers if tuple(launch[:2] for launch in layer) == kind]
    medians = [statistics.median(launch[2] for launch in place) for place in zip(*counted)]
    for (name, grid), median in zip(kind, medians):
        print(f"{median:9.2f} us  {name} {grid}")
    print(f"{sum(medians):9.2f} us  a layer, median of {count}")


main()
