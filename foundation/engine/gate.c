/* The gate with its derivative. */

static inline FORCED V sigmoid(V x) { return (T)1 / ((T)1 + power_of_e(-x)); }

static inline FORCED V silu_slope(V x) {
  const V s = sigmoid(x);
  return s + x * s * ((T)1 - s);
}

static inline FORCED V hyperbolic_tangent(V x) { return (T)2 * sigmoid((T)2 * x) - (T)1; }

#define ELEMENTWISE(count, ...) \
  for (int64_t u = 0; u < (count); u += LANES) { \
    const int lanes = (count) - u < LANES ? (count) - u : LANES; \
    __VA_ARGS__ \
  }

static void gate_forward(const Gate *gate, int64_t atoms, const T *in, int64_t in_width, T *out, int64_t out_width) {
  for (int64_t atom = 0; atom < atoms; atom++, in += in_width, out += out_width) {
    ELEMENTWISE(gate->odd, STORE(out + u, gate->tanh * hyperbolic_tangent(LOAD(in + u, lanes)), lanes);)
    const T *even = in + gate->odd;
    T *to = out + gate->odd;
    ELEMENTWISE(gate->even, const V x = LOAD(even + u, lanes); STORE(to + u, gate->silu * x * sigmoid(x), lanes);)
    const T *gates = even + gate->even, *block = gates;
    for (int g = 0; g < gate->num_gated; g++) block += gate->channels[g];
    to += gate->even;
    for (int g = 0; g < gate->num_gated; g++) {
      const int channels = gate->channels[g];
      ELEMENTWISE(channels, const V x = LOAD(gates + u, lanes), factor = gate->silu * x * sigmoid(x);
                  for (int c = 0; c < gate->components[g]; c++)
                      STORE(to + c * channels + u, factor * LOAD(block + c * channels + u, lanes), lanes);)
      gates += channels, block += channels * gate->components[g], to += channels * gate->components[g];
    }
  }
}

/* Replaces the inputs of the gate by the gradient for them. */
static void gate_backward(const Gate *gate, int64_t atoms, T *in, int64_t in_width, const T *gradient, int64_t out_width) {
  for (int64_t atom = 0; atom < atoms; atom++, in += in_width, gradient += out_width) {
    ELEMENTWISE(gate->odd, const V t = hyperbolic_tangent(LOAD(in + u, lanes));
                STORE(in + u, gate->tanh * ((T)1 - t * t) * LOAD(gradient + u, lanes), lanes);)
    T *even = in + gate->odd;
    const T *from = gradient + gate->odd;
    ELEMENTWISE(gate->even,
                STORE(even + u, gate->silu * silu_slope(LOAD(even + u, lanes)) * LOAD(from + u, lanes), lanes);)
    T *gates = even + gate->even, *block = gates;
    for (int g = 0; g < gate->num_gated; g++) block += gate->channels[g];
    from += gate->even;
    for (int g = 0; g < gate->num_gated; g++) {
      const int channels = gate->channels[g];
      ELEMENTWISE(channels, const V x = LOAD(gates + u, lanes), factor = gate->silu * x * sigmoid(x); V sum = ZERO;
                  for (int c = 0; c < gate->components[g]; c++) {
                    const V own = LOAD(from + c * channels + u, lanes);
                    sum += own * LOAD(block + c * channels + u, lanes);
                    STORE(block + c * channels + u, factor * own, lanes);
                  } STORE(gates + u, gate->silu * silu_slope(x) * sum, lanes);)
      gates += channels, block += channels * gate->components[g], from += channels * gate->components[g];
    }
  }
}
