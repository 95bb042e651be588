/* Adds to each atom's own gradient what the pairs that it sends along their first edge give it. The order of the sum is
   that of the edges: the same bits every time. */
extern "C" __global__ void __launch_bounds__(128)
    gather(const T *__restrict__ by_pair, const I *__restrict__ order, const I *__restrict__ pointers,
           const I *__restrict__ reverse, const I *__restrict__ pairs, OUTPUT gx, I num_atoms) {
  enum { COLUMNS = 8 };
  const int lane = threadIdx.x % 32;
  const I atom = (I)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
  if (atom >= num_atoms) return;
  const int first = blockIdx.y * COLUMNS * 32 + lane;
  T s[COLUMNS] = {};
  const I last = __ldg(pointers + atom + 1);
  for (I base = __ldg(pointers + atom); base < last; base += 32) {
    bool is_first = false;
    int pair = 0;
    if (base + lane < last) {
      const I edge = __ldg(order + base + lane), other = __ldg(reverse + edge);
      is_first = other < 0 || other > edge;
      pair = (int)__ldg(pairs + edge);
    }
    for (unsigned left = __ballot_sync(ALL, is_first); left; left &= left - 1) {
      const T *from = by_pair + (I)__shfl_sync(ALL, pair, __ffs(left) - 1) * DX + first;
#pragma unroll
      for (int k = 0; k < COLUMNS; k++) s[k] += load_past(from + 32 * k, first + 32 * k < DX);
    }
  }
#pragma unroll
  for (int k = 0; k < COLUMNS; k++)
    if (first + 32 * k < DX) gx[atom * DX + first + 32 * k] = s[k] + gx[atom * DX + first + 32 * k];
}
