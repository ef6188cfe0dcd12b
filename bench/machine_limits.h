#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "bench/machine_loops.h"
#include "common/thread_pool.h"

namespace moiety::bench {

/// What the machine gave at one moment, on all threads together.
struct MachineRates {
  double dram_bytes_per_second = 0;
  double matrix_operations_per_second = 0;  ///< of the loop that limits are made of
  /// Of the time that the threads multiplied, the share in which they had a core: below 1 other
  /// processes had it. (What a hypervisor takes is not seen.)
  double core_share = 1;
};

/// Measures DRAM reading and multiply-adds from registers, on as many threads as the engine has.
///
/// Rates of a shared machine drift by tens of percent within seconds: measure before and after
/// whatever is compared with them. Not thread-safe.
class MachineLimits {
 public:
  /// `bf16_inputs`: what the model multiplies. The matrix rate is that of AMX tiles where the CPU
  /// has them and inputs are bf16, else of the widest fp32 FMA.
  /// Allocates and touches a buffer that must be far larger than the caches, on huge pages where
  /// the system gives them.
  MachineLimits(std::size_t num_threads,
                bool bf16_inputs,
                std::size_t buffer_bytes = std::size_t{512} << 20);
  ~MachineLimits();
  /// Reads the packed weights that this process holds instead of the buffer, where they are larger:
  /// memory of one machine is not all equally near, and limits should be those of the weights' own
  /// pages. The weights stay as they are while the object lives.
  void read_weights();

  MachineLimits(const MachineLimits&) = delete;
  MachineLimits& operator=(const MachineLimits&) = delete;

  /// Takes about `seconds`, and no less than one pass over the buffer.
  MachineRates measure(double seconds = 0.18);

  /// Operations per second of one loop over about `seconds`.
  double measure_loop(const MatrixLoop& loop, double seconds);
  double measure_dram(double seconds);

  const MatrixLoop& matrix_loop() const { return matrix_loop_; }

 private:
  ThreadPool pool_;
  MatrixLoop matrix_loop_;
  double core_share_ = 1;  // of the last measure_loop()
  std::size_t num_pieces_;
  std::byte* buffer_;
  std::vector<std::span<const std::byte>> pieces_;  // what is read
};

/// The machine in words, for the head of a report: "AMD EPYC 9334".
std::string cpu_name();

double median(std::vector<double> values);

}  // namespace moiety::bench
