// Products of few rows against f64. That x is waited for where kernels overlap is for a device to show.
#include "check.hpp"

#include "../../cuda/prelude.cuh"

#include "../../cuda/product.cu"

struct Kernel {
    u32 rows;
    u32 outputs;
    void (*run)(const ProductArgs);
};

struct Shape {
    u32 inputs;
    u32 outputs;
};

// Nothing is written behind the end: the sanitizer sees it.
static void product_agrees(const Kernel& kernel, u32 rows, Shape shape, u32 shares, bool wide) {
    const auto [inputs, outputs] = shape;
    const std::vector<u16> x = random_bf16(rows * inputs), w = random_bf16(outputs * inputs);
    std::vector<float> y(rows * outputs);
    std::vector<u16> narrow(y.size());
    void* to = wide ? (void*)y.data() : narrow.data();
    const ProductArgs args{x.data(), w.data(), to, rows, inputs, outputs, shares, wide, 0};
    const u32 blocks = (outputs + kernel.outputs - 1) / kernel.outputs;
    // As `Variant` in `product.rs`, without what keeps others away.
    const size_t shared = STAGES * (kernel.outputs + kernel.rows) * (kernel.outputs == 128 ? 128 : 256) * 2;
    launch({blocks * shares, 1, 1}, PRODUCT_THREADS, [&] { kernel.run(args); }, {shares, shared});
    for (u32 row = 0; row < rows; row++)
        for (u32 c = 0; c < outputs; c++) {
            double sum = 0;
            for (u32 k = 0; k < inputs; k++) sum += value(x[row * inputs + k]) * value(w[c * inputs + k]);
            const u32 at = row * outputs + c;
            expect("y", sum, wide ? y[at] : value(narrow[at]));
        }
}

int main() {
    const Kernel kernels[] = {{8, 128, product8_128}, {16, 128, product16_128}, {8, 64, product8_64},
                              {16, 64, product16_64}, {32, 64, product32_64},   {8, 80, product8_80},
                              {16, 80, product16_80}, {32, 80, product32_80}};
    for (const Kernel& kernel : kernels) {
        product_agrees(kernel, kernel.rows / 2 + 1, {8, 8}, 1, true);
        product_agrees(kernel, kernel.rows, {1000, 120}, 1, false);
        product_agrees(kernel, kernel.rows / 2 + 1, {1544, 168}, 2, true);
        // A share has nothing.
        product_agrees(kernel, kernel.rows, {200, 88}, 2, false);
    }
    product_agrees(kernels[0], 7, {1160, 136}, 4, false);
    printf("%ld values, the worst off by %.4f\n", values, worst);
}
