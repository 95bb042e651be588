/* The rows of one layer's convolution; the sums over channels are generated. */

/* Harmonics of up to 16 edges side by side, of the opposite direction if reversed; then the contracted couplings. */
static void prepare(const Rows *rows, int64_t first, int count, bool reversed, Batch *b) {
  T *y = (T *)b->y;
  b->count = count;
  for (int k = 0; k < count; k++)
    for (int i = 0; i < DY; i++) {
      const T value = rows->harmonics[(first + k) * DY + i];
      y[i * EDGES + k] = reversed && odd[i] ? -value : value;
    }
  couple(y, b->m);
}

void SUM(const Rows *rows, int64_t first, int64_t last, const T *weights, T *out) {
  Batch b;
  memset(b.y, 0, sizeof b.y);
  for (int64_t edge = first; edge < last; edge += EDGES) {
    prepare(rows, edge, last - edge < EDGES ? last - edge : EDGES, false, &b);
    for (int k = 0; k < b.count; k++) {
      b.x[k] = rows->mixed + rows->senders[edge + k] * DX;
      b.w[k] = weights + (edge - first + k) * NW;
    }
    sum(&b, out);
  }
}

void DIFFERENTIATE(const Rows *rows, int64_t first, int64_t last, const T *weights, const T *slopes, const T *x, T *out) {
  Batch b;
  memset(b.y, 0, sizeof b.y);
  for (int64_t edge = first; edge < last; edge += EDGES) {
    prepare(rows, edge, last - edge < EDGES ? last - edge : EDGES, true, &b);
    for (int k = 0; k < b.count; k++) {
      b.g[k] = rows->gradient + rows->senders[edge + k] * DO;
      b.w[k] = weights + (edge - first + k) * NW;
      b.d[k] = slopes + (edge - first + k) * NW;
    }
    for (int k = 0; k < b.count; k++) {
      V y[DY], r = ZERO;
      for (int i = 0; i < DY; i++) y[i] = ZERO;
      gradient(&b, k, x, out, y, &r);
      T *to = rows->harmonics_gradient + (edge + k) * DY;
      for (int i = 0; i < DY; i++) to[i] += odd[i] ? -folded(y[i]) : folded(y[i]);
      rows->length_gradient[edge + k] += folded(r);
    }
  }
}
