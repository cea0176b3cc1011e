// Products of few rows against f64. Clusters have one block here: how several add up, and that copies are waited for, is for a
// device to show.
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
static void product_agrees(const Kernel& kernel, u32 rows, Shape shape, bool wide) {
    const auto [inputs, outputs] = shape;
    const std::vector<u16> x = random_bf16(rows * inputs), w = random_bf16(outputs * inputs);
    std::vector<float> y(rows * outputs);
    std::vector<u16> narrow(y.size());
    void* to = wide ? (void*)y.data() : narrow.data();
    const ProductArgs args{x.data(), w.data(), to, rows, inputs, outputs, 1, wide, 0};
    // As `Variant` in `product.rs`, without what keeps others away.
    ask_for_shared(STAGES * (kernel.outputs + kernel.rows) * (kernel.outputs == 128 ? 128 : 256) * 2);
    const u32 blocks = (outputs + kernel.outputs - 1) / kernel.outputs;
    launch({blocks, 1, 1}, PRODUCT_THREADS, [&] { kernel.run(args); });
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
    for (const Kernel& kernel : kernels)
        for (const Shape shape : {Shape{8, 8}, {1000, 120}, {776, 168}}) {
            product_agrees(kernel, kernel.rows, shape, false);
            product_agrees(kernel, kernel.rows / 2 + 1, shape, true);
        }
    printf("%ld values, the worst off by %.4f\n", values, worst);
}
