"""Draws what `gpu bench` wrote: python3 tests/gpu_chart.py tests/gpu.json tests/gpu.svg

Bars: tokens/s of decode steps by rows and distinct adapters, as multiples of vLLM's. Below each its share of the base.
"""

import json
import sys

# vLLM 0.26.0 on an H200, its best of default, dual stream and tuned block sizes, tokens/s by (rows, adapters); without LoRA its base.
VLLM = {
    (1, 0): 206, (1, 1): 184,
    (8, 0): 1610, (8, 1): 1444, (8, 8): 1273,
    (32, 0): 5907, (32, 1): 5293, (32, 8): 4597, (32, 32): 3580,
    (64, 0): 10776, (64, 1): 9433, (64, 8): 8657, (64, 32): 6482, (64, 64): 4941,
    (128, 0): 17921, (128, 1): 12577, (128, 8): 13587, (128, 32): 10664, (128, 64): 8190,
    (256, 0): 23858, (256, 1): 18022, (256, 8): 20317, (256, 32): 15486, (256, 64): 11640,
}  # fmt: skip
COLOURS = {0: "#444444", 1: "#0072b2", 8: "#009e73", 32: "#e69f00", 64: "#cc79a7"}
BAR, GAP, LEFT, TOP, HEIGHT, MOST = 34, 30, 60, 90, 320, 2.1


def text(x, y, words, size=13, anchor="middle"):
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" font-size="{size}">{words}</text>'


def line(y, colour, dashes=""):
    return f'<line x1="{LEFT}" x2="WIDTH" y1="{y:.0f}" y2="{y:.0f}" stroke="{colour}" {dashes}/>'


def draw(report):
    def height(ratio):
        return ratio / MOST * HEIGHT

    out, x, bottom = [], LEFT + 10, TOP + HEIGHT
    for ratio in (0, 0.5, 1, 1.5, 2):
        y = bottom - height(ratio)
        out += [line(y, "#dddddd"), text(LEFT - 8, y + 4, ratio, anchor="end")]
    rows = sorted({cell["batch"] for cell in report["decode"]})
    for batch in rows:
        cells = [cell for cell in report["decode"] if cell["batch"] == batch]
        start = x
        for cell in cells:
            ratio = cell["tokens_per_s"] / VLLM[batch, cell["adapters"]]
            y = bottom - height(ratio)
            colour = COLOURS[cell["adapters"]]
            out.append(f'<rect x="{x}" y="{y:.1f}" width="{BAR - 4}" height="{bottom - y:.1f}" fill="{colour}"/>')
            out.append(text(x + BAR / 2 - 2, y - 5, f"{ratio:.2f}", 11))
            if cell["adapters"]:
                out.append(text(x + BAR / 2 - 2, bottom + 15, f"{cell['share_of_base']:.3f}", 10))
            x += BAR
        out.append(text((start + x) / 2, bottom + 34, f"{batch} rows" if batch > 1 else "1 row"))
        x += GAP
    out.append(line(bottom - height(1), "#000000", 'stroke-dasharray="6 4"'))
    title = f"Decode steps, Llama-3.1-8B shapes, {report['device']}: tokens/s as multiples of vLLM 0.26.0"
    out.append(text(x / 2, 26, title, 16))
    out.append(text(LEFT, TOP - 12, "dashed: vLLM, the same rows and adapters; below each bar its share of our base", 12, "start"))
    for place, (adapters, colour) in enumerate(COLOURS.items()):
        at = LEFT + 130 * place
        out.append(f'<rect x="{at}" y="44" width="14" height="14" fill="{colour}"/>')
        label = "base" if adapters == 0 else "1 adapter" if adapters == 1 else f"{adapters} adapters"
        out.append(text(at + 20, 56, label, anchor="start"))
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{x}" height="{bottom + 50}" font-family="sans-serif">'
    body = "\n".join(out).replace('"WIDTH"', f'"{x - 10}"')
    return f'{head}\n<rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n'


if __name__ == "__main__":
    source, target = sys.argv[1:]
    with open(source) as file:
        report = json.load(file)
    with open(target, "w") as file:
        file.write(draw(report))
