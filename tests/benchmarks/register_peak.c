/* Multiplications and additions that never leave the registers: what this core could do. */
enum { CHAINS = sizeof(V) == 64 ? 24 : 12 };

double chains(int64_t count) {
  V a[CHAINS], x = ZERO + (T)0.999, y = ZERO + (T)1e-3;
#pragma GCC unroll 24
  for (int i = 0; i < CHAINS; i++) a[i] = ZERO + (T)i;
  for (int64_t n = 0; n < count; n++) {
#pragma GCC unroll 24
    for (int i = 0; i < CHAINS; i++) a[i] = a[i] * x + y;
    __asm__ volatile("" ::: "memory");
  }
  T sum = 0;
#pragma GCC unroll 24
  for (int i = 0; i < CHAINS; i++) sum += total(a[i]);
  return sum;
}

int64_t operations(void) { return CHAINS * LANES * 2; }
