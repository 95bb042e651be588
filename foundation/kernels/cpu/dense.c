/* Layers of atoms and of pairs: equivariant linear maps, and the gate with its first two derivatives. */

/* A matrix of a linear map: first columns of an irrep's features, first weight, and sizes. */
typedef struct {
  int64_t x, y, w, components, fan_in, fan_out;
  double scale;
} Block;

typedef struct {
  int64_t rows, num_blocks, x_row, y_row;
  int32_t add, threads;
} Call;

static int64_t work(const Call *call, const Block *blocks) {
  int64_t sum = 0;
  for (int64_t i = 0; i < call->num_blocks; i++) sum += blocks[i].components * blocks[i].fan_in * blocks[i].fan_out;
  return sum * call->rows;
}

/* y = x W (back: x = y Wᵀ), or added to it, for a thread's rows. */
static void map_rows(const Call *call, const Block *blocks, int back, const T *w, const T *from, T *to) {
  const int parts = THREADS_FOR(work(call, blocks), call->threads);
  const int64_t from_row = back ? call->y_row : call->x_row, to_row = back ? call->x_row : call->y_row;
#pragma omp parallel for schedule(static, 1) num_threads(parts) if (parts > 1)
  for (int part = 0; part < parts; part++) {
    const int64_t begin = begin_of(call->rows, MR, part, parts), end = begin_of(call->rows, MR, part + 1, parts);
    for (int64_t i = 0; i < call->num_blocks && begin < end; i++) {
      const Block b = blocks[i];
      const int64_t inner = back ? b.fan_out : b.fan_in, columns = back ? b.fan_in : b.fan_out;
      const Matrix matrix = {w + b.w, back ? 1 : b.fan_out, back ? b.fan_out : 1};
      for (int64_t c = 0; c < b.components; c++)
        product(end - begin, columns, inner, depth_of(columns), b.scale,
                (Matrix){from + begin * from_row + (back ? b.y : b.x) + c * inner, from_row, 1}, matrix,
                to + begin * to_row + (back ? b.x : b.y) + c * columns, to_row, call->add);
    }
  }
}

void linear(const Call *call, const Block *blocks, const T *w, const T *x, T *y) { map_rows(call, blocks, 0, w, x, y); }

void linear_back(const Call *call, const Block *blocks, const T *w, const T *y, T *x) {
  map_rows(call, blocks, 1, w, y, x);
}

/* W = xᵀ y, or added to it: the gradient of a linear map for its weights. */
void linear_weights(const Call *call, const Block *blocks, const T *x, const T *y, T *w) {
  const int parts = THREADS_FOR(work(call, blocks), call->threads);
#pragma omp parallel for schedule(static, 1) num_threads(parts) if (parts > 1)
  for (int part = 0; part < parts; part++)
    for (int64_t i = 0; i < call->num_blocks; i++) {
      const Block b = blocks[i];
      const int64_t begin = begin_of(b.fan_in, MR, part, parts), end = begin_of(b.fan_in, MR, part + 1, parts);
      for (int64_t c = 0; c < b.components && begin < end; c++)
        product(end - begin, b.fan_out, call->rows, depth_of(b.fan_out), b.scale,
                (Matrix){x + b.x + c * b.fan_in + begin, 1, call->x_row},
                (Matrix){y + b.y + c * b.fan_out, call->y_row, 1}, w + b.w + begin * b.fan_out, b.fan_out,
                call->add || c > 0);
    }
}

/* Input: odd scalars, even scalars, a gate for each channel of the irreps that follow. The output lacks the gates. */
typedef struct {
  int64_t odd, even, gates, num_gated, inputs, outputs;
  double tanh_scale, silu_scale;
  int64_t components[32], channels[32];
} Gate;

/* Scaled SiLU and its first two derivatives. */
typedef struct {
  V value, first, second;
} Silu;

static inline FORCED Silu silu(V x, T scale) {
  const V s = 1 / (1 + power_of_e(-x));
  return (Silu){scale * x * s, scale * s * (1 + x * (1 - s)), scale * s * (1 - s) * (2 + x * (1 - 2 * s))};
}

static inline FORCED void odd_scalars(const Gate *gate, const T *z, const T *u, const T *q, T *h, T *gz, int add) {
  const T scale = gate->tanh_scale;
  for (int64_t i = 0; i < gate->odd; i++) {
    const T t = tanh(z[i]), slope = 1 - t * t;
    if (q) h[i] = scale * slope * q[i], gz[i] = -2 * scale * t * slope * u[i] * q[i];
    else if (u) gz[i] = (add ? gz[i] : 0) + scale * slope * u[i];
    else h[i] = scale * t;
  }
}

static inline FORCED void even_scalars(const Gate *gate, const T *z, const T *u, const T *q, T *h, T *gz, int add) {
  for (int64_t i = gate->odd; i < gate->odd + gate->even; i += LANES) {
    const int64_t rest = gate->odd + gate->even - i;
    const int lanes = rest < LANES ? rest : LANES;
    const Silu f = silu(LOAD(z + i, lanes), gate->silu_scale);
    if (q) {
      const V along = LOAD(q + i, lanes);
      STORE(h + i, f.first * along, lanes);
      STORE(gz + i, f.second * LOAD(u + i, lanes) * along, lanes);
    } else if (u) STORE(gz + i, (add ? LOAD(gz + i, lanes) : ZERO) + f.first * LOAD(u + i, lanes), lanes);
    else STORE(h + i, f.value, lanes);
  }
}

/* `lanes` channels of an irrep, whose gate is z[g]; z[in] and h[out] are its first component. */
static inline FORCED void gated(int64_t components, int64_t channels, int64_t g, int64_t in, int64_t out, int lanes,
                                T scale, const T *z, const T *u, const T *q, T *h, T *gz, int add) {
  const Silu f = silu(LOAD(z + g, lanes), scale);
  const V along = q ? LOAD(q + g, lanes) : ZERO;
  V zu = ZERO, uq = ZERO;
  for (int64_t c = 0; c < components; c++, in += channels, out += channels) {
    const V x = LOAD(z + in, lanes);
    if (!u) {
      STORE(h + out, f.value * x, lanes);
      continue;
    }
    const V v = LOAD(u + out, lanes);
    zu += x * v;
    if (!q) {
      STORE(gz + in, (add ? LOAD(gz + in, lanes) : ZERO) + f.value * v, lanes);
      continue;
    }
    const V t = LOAD(q + in, lanes);
    uq += v * t;
    STORE(h + out, f.value * t + f.first * along * x, lanes);
    STORE(gz + in, f.first * along * v, lanes);
  }
  if (q) STORE(gz + g, f.first * uq + f.second * along * zu, lanes);
  else if (u) STORE(gz + g, (add ? LOAD(gz + g, lanes) : ZERO) + f.first * zu, lanes);
}

/* h = f(z); with u, gz = f'(z)ᵀ u; with q too, h = f'(z) q and gz the gradient of u · h for z. */
void activate(const Gate *gate, int64_t rows, const T *z, const T *u, const T *q, T *h, T *gz, int add, int threads) {
  const int parts = THREADS_FOR(64 * rows * gate->inputs, threads);
#pragma omp parallel for schedule(static) num_threads(parts) if (parts > 1)
  for (int64_t row = 0; row < rows; row++) {
    const T *zr = z + row * gate->inputs, *ur = u ? u + row * gate->outputs : 0, *qr = q ? q + row * gate->inputs : 0;
    T *hr = h ? h + row * gate->outputs : 0, *gr = gz ? gz + row * gate->inputs : 0;
    odd_scalars(gate, zr, ur, qr, hr, gr, add);
    even_scalars(gate, zr, ur, qr, hr, gr, add);
    int64_t g = gate->odd + gate->even, in = g + gate->gates, out = g;
    for (int64_t i = 0; i < gate->num_gated; i++) {
      const int64_t channels = gate->channels[i], components = gate->components[i];
      int64_t k = 0;
      for (; k + LANES <= channels; k += LANES)
        gated(components, channels, g + k, in + k, out + k, LANES, gate->silu_scale, zr, ur, qr, hr, gr, add);
      if (k < channels)
        gated(components, channels, g + k, in + k, out + k, channels - k, gate->silu_scale, zr, ur, qr, hr, gr, add);
      g += channels, in += components * channels, out += components * channels;
    }
  }
}
