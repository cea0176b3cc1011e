"""The curve of a run as an SVG."""

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 340, 56, 20, 44, 44


def curve(title, rewards, populations):
    """The policy's rewards, and what its population earned: the mean in a band from the worst to the best. From 0 to 1."""

    def x(index):
        return LEFT + (WIDTH - LEFT - RIGHT) * index / max(len(rewards) - 1, 1)

    def y(value):
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * min(max(value, 0), 1)

    def points(values):
        return [f"{x(index):.1f},{y(value):.1f}" for index, value in enumerate(values)]

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="26" font-size="16" fill="#222">{title}</text>',
    ]
    for step in range(6):
        value = step / 5
        parts.append(f'<path d="M{LEFT} {y(value):.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end" fill="#555">{value:.1f}</text>')
    for index in range(0, len(rewards), max(len(rewards) // 10, 1)):
        parts.append(f'<text x="{x(index):.1f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle" fill="#555">{index}</text>')
    band = points(map(min, populations)) + points(map(max, populations))[::-1]
    means = points(sum(scores) / len(scores) for scores in populations)
    parts += [
        f'<polygon points="{" ".join(band)}" fill="#2a6fdb" opacity="0.12"/>',
        f'<polyline points="{" ".join(means)}" fill="none" stroke="#2a6fdb" stroke-dasharray="5 4"/>',
        f'<polyline points="{" ".join(points(rewards))}" fill="none" stroke="#2a6fdb" stroke-width="2.5"/>',
        f'<text x="{WIDTH - RIGHT}" y="26" text-anchor="end" fill="#2a6fdb">line: the policy, dashes and band: its population</text>',
        f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 8}" text-anchor="end" fill="#555">update</text>',
        "</svg>",
    ]
    return "\n".join(parts) + "\n"
