// Random numbers, and results beside what is expected.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <random>

#include "device.hpp"

static std::mt19937 generator(2);
static double worst = 0;
static long values = 0;

static float random_float() { return std::normal_distribution<float>()(generator); }
static double value(u16 bits) { return __uint_as_float((u32)bits << 16); }

static std::vector<u16> random_bf16(size_t count) {
    std::vector<u16> all(count);
    for (auto& x : all) x = round_bf16(random_float());
    return all;
}

static std::vector<float> random_floats(size_t count, float around = 0.0f) {
    std::vector<float> all(count);
    for (auto& x : all) x = around + random_float();
    return all;
}

// A result in bf16 is off by up to 1 in 256.
static void expect(const char* what, double expected, double found) {
    const double off = std::abs(expected - found) / (1 + std::abs(expected));
    values++;
    if (!(off < 0.01)) {
        printf("%s: expected %g, found %g\n", what, expected, found);
        exit(1);
    }
    worst = std::max(worst, off);
}
