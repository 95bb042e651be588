/* The exponential, by the Taylor coefficients EXP. */
typedef __typeof__(ZERO < ZERO) Bits;

static inline FORCED V all(T x) { return ZERO + x; }

static inline FORCED V chosen(Bits where, V yes, V no) { return (V)((where & (Bits)yes) | (~where & (Bits)no)); }

/* e^x to the last digits: 2^n times a polynomial; beyond the range of normal numbers, that at its end. */
static inline FORCED V power_of_e(V x) {
  const V most = all(sizeof(T) == 4 ? 87 : 700);
  x = chosen(x < -most, -most, chosen(x > most, most, x));
  const T magic = sizeof(T) == 4 ? 12582912.0 : 6755399441055744.0;
  const V shifted = x * (T)1.4426950408889634 + magic, n = shifted - magic;
  const V r = (x - n * (T)0.693145751953125) - n * (T)1.42860682030941723212e-6;
  V p = all((T)EXP[EXP_DEGREE]);
  for (int i = EXP_DEGREE - 1; i >= 0; i--) p = p * r + (T)EXP[i];
  const Bits bits = ((Bits)shifted << MANTISSA) + (Bits)all(1);
  return p * (V)bits;
}
