/* Weights of edges, and their slopes over distance: from a table of polynomials, or by the radial network itself. */

enum { TERMS_OF_TABLE = 8, TILE = 128 };

/* Distances of all edges [Å], and their places in the table: number of the interval, -1 to 1 within it. */
typedef struct {
  double *distances;
  int32_t *interval;
  T *place;
} Lengths;

static void locate(double distance, int32_t *interval, T *place) {
  int low = 0, high = NUM_INTERVALS;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (distance < breaks[middle]) high = middle;
    else low = middle;
  }
  *interval = low;
  *place = (T)((2 * distance - breaks[low] - breaks[low + 1]) / (breaks[low + 1] - breaks[low]));
}

/* One vector of weights (and slopes) of the edges of an interval, whose polynomials stay in registers. */
static inline FORCED void polynomials(int count, const int16_t *edges, const T (*powers)[TERMS_OF_TABLE],
                                      const T (*derivatives)[TERMS_OF_TABLE], const T *table, int64_t width, T *weights,
                                      T *slopes, int lanes) {
  V c[TERMS_OF_TABLE];
  EACH(j, 0, TERMS_OF_TABLE) c[j] = LOAD(table + j * width, lanes);
  for (int n = 0; n < count; n++) {
    const T *p = powers[edges[n]], *d = derivatives[edges[n]];
    V sum = c[0];
    EACH(j, 1, TERMS_OF_TABLE) sum += p[j] * c[j];
    STORE(weights + edges[n] * width, sum, lanes);
    if (!slopes) continue;
    V slope = d[1] * c[1];
    EACH(j, 2, TERMS_OF_TABLE) slope += d[j] * c[j];
    STORE(slopes + edges[n] * width, slope, lanes);
  }
}

static void from_table(const T *table, int64_t width, const Lengths *lengths, int64_t first, int count, T *weights,
                       T *slopes) {
  T powers[TILE][TERMS_OF_TABLE], derivatives[TILE][TERMS_OF_TABLE];
  int16_t edges[TILE], start[NUM_INTERVALS + 1] = {0}, next[NUM_INTERVALS];
  for (int n = 0; n < count; n++) {
    const int interval = lengths->interval[first + n];
    const T t = lengths->place[first + n];
    const T factor = (T)(2 / (breaks[interval + 1] - breaks[interval]));
    powers[n][0] = 1, derivatives[n][0] = 0;
    for (int j = 1; j < TERMS_OF_TABLE; j++) {
      powers[n][j] = t * powers[n][j - 1];
      derivatives[n][j] = factor * j * powers[n][j - 1];
    }
    start[interval + 1]++;
  }
  for (int i = 0; i < NUM_INTERVALS; i++) start[i + 1] += start[i], next[i] = start[i];
  for (int n = 0; n < count; n++) edges[next[lengths->interval[first + n]]++] = n;
  for (int i = 0; i < NUM_INTERVALS; i++) {
    const int some = start[i + 1] - start[i];
    if (!some) continue;
    const T *rows = table + (int64_t)i * TERMS_OF_TABLE * width;
    int64_t u = 0;
    for (; u + LANES <= width; u += LANES)
      polynomials(some, edges + start[i], powers, derivatives, rows + u, width, weights + u, slopes ? slopes + u : 0,
                  LANES);
    if (u < width)
      polynomials(some, edges + start[i], powers, derivatives, rows + u, width, weights + u, slopes ? slopes + u : 0,
                  width - u);
  }
}

/* The radial basis times the cutoff function, and its derivative. */
static void basis_of(double r, const T *wave_numbers, T *values, T *slopes) {
  double cut, cut_slope;
  cutoff_function(r, &cut, &cut_slope);
  for (int n = 0; n < NUM_BASIS; n++) {
    const double k = wave_numbers[n], value = 2 / CUTOFF * sin(k * r) / r;
    const double slope = (2 / CUTOFF * k * cos(k * r) - value) / r;
    values[n] = (T)(value * cut);
    slopes[n] = (T)(slope * cut + value * cut_slope);
  }
}

static void by_network(const Radial *radial, const T *packed, const T *wave_numbers, const Lengths *lengths,
                       int64_t first, int count, T *weights, T *slopes) {
  static const int widest = WIDEST_RADIAL;
  T values[2][TILE * widest], derivatives[2][TILE * widest];
  for (int n = 0; n < count; n++)
    basis_of(lengths->distances[first + n], wave_numbers, values[0] + n * NUM_BASIS, derivatives[0] + n * NUM_BASIS);
  const int last = radial->num_sizes - 2;
  for (int layer = 0; layer < last; layer++) {
    const int in = radial->sizes[layer], out = radial->sizes[layer + 1], now = layer % 2;
    const T *matrix = packed + radial->packed[layer];
    product_of_packed(count, out, in, values[now], matrix, values[!now]);
    product_of_packed(count, out, in, derivatives[now], matrix, derivatives[!now]);
    ELEMENTWISE((int64_t)count * out, const V x = LOAD(values[!now] + u, lanes);
                STORE(derivatives[!now] + u, silu_slope(x) * LOAD(derivatives[!now] + u, lanes), lanes);
                STORE(values[!now] + u, x * sigmoid(x), lanes);)
  }
  const int in = radial->sizes[last], out = radial->sizes[last + 1], now = last % 2;
  const T *matrix = packed + radial->packed[last];
  product_of_packed(count, out, in, values[now], matrix, weights);
  if (slopes) product_of_packed(count, out, in, derivatives[now], matrix, slopes);
}
