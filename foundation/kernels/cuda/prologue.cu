/* Types and the few operations that the generated kernels share. REAL is float or double. */
typedef REAL T;
typedef long long I;

/* A checked build puts classes in place of plain memory. */
#ifndef SHARED
#define SHARED(type, name, count) __shared__ __align__(16) type name[count]
#define SHARED_OF(type) type *
#define OUTPUT T *__restrict__
/* Read again what lies at a pointer, instead of keeping it in registers from one pair to the next. */
#define FORGET(pointer) asm volatile("" : "+l"(pointer))
#endif

#define ALL 0xffffffffu
#define INLINE __device__ __forceinline__

/* Read what no kernel of this launch writes; zero in lanes beyond the last channel. */
INLINE T load(const T *p, bool on) { return on ? __ldg(p) : T(0); }

/* Add up N numbers (a power of two, at most 32) over the lanes. Lane L gets the sum of number L * N / 32: in every step
   each lane keeps half of the numbers and gives the other half to the lane that keeps those. */
template <int N> INLINE T total(T *v, int lane) {
  int apart = 16;
#pragma unroll
  for (int n = N / 2; n; n /= 2, apart /= 2) {
    const bool upper = lane & apart;
#pragma unroll
    for (int i = 0; i < n; i++) {
      const T kept = upper ? v[i + n] : v[i], given = upper ? v[i] : v[i + n];
      v[i] = kept + __shfl_xor_sync(ALL, given, apart);
    }
  }
#pragma unroll
  for (; apart; apart /= 2) v[0] += __shfl_xor_sync(ALL, v[0], apart);
  return v[0];
}
