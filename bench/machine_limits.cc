#include "bench/machine_limits.h"

#include <sys/mman.h>
#include <time.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <fstream>

#include "common/check.h"
#include "kernels/weight_memory.h"

namespace moiety::bench {
namespace {

constexpr std::size_t kPieceBytes = std::size_t{4} << 20;  // a thread reads at once

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point began) {
  return std::chrono::duration<double>(Clock::now() - began).count();
}

/// CPU time of all threads of this process.
double cpu_seconds() {
  timespec now{};
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

MatrixLoop choose_loop(bool bf16_inputs) {
  std::vector<MatrixLoop> loops = matrix_loops();
  MatrixLoop chosen = loops.front();
  for (const MatrixLoop& loop : loops) {
    if (loop.inputs == MatrixLoop::Inputs::kF32 || (loop.tiles && bf16_inputs)) chosen = loop;
  }
  return chosen;
}

}  // namespace

MachineLimits::MachineLimits(std::size_t num_threads, bool bf16_inputs, std::size_t buffer_bytes)
    : pool_(num_threads),
      matrix_loop_(choose_loop(bf16_inputs)),
      num_pieces_(std::max<std::size_t>(buffer_bytes / kPieceBytes, 1)) {
  const std::size_t bytes = num_pieces_ * kPieceBytes;
  void* memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  MOIETY_CHECK(memory != MAP_FAILED, "no memory for the buffer that is read");
  buffer_ = static_cast<std::byte*>(memory);
  ::madvise(memory, bytes, MADV_HUGEPAGE);  // a hint: fewer TLB misses
  pool_.parallel_for(num_pieces_, [&](std::size_t i, std::size_t) {
    std::memset(buffer_ + i * kPieceBytes, 1, kPieceBytes);
  });
  for (std::size_t i = 0; i < num_pieces_; ++i) {
    pieces_.emplace_back(buffer_ + i * kPieceBytes, kPieceBytes);
  }
}

void MachineLimits::read_weights() {
  constexpr std::size_t kUnit = 256;  // what the loops read at once
  std::vector<std::span<const std::byte>> pieces;
  std::size_t bytes = 0;
  for (std::span<const std::byte> block : kernels::weights_in_use()) {
    block = block.first(block.size() / kUnit * kUnit);
    bytes += block.size();
    while (!block.empty()) {
      const std::size_t size = std::min(block.size(), kPieceBytes);
      pieces.push_back(block.first(size));
      block = block.subspan(size);
    }
  }
  if (bytes >= num_pieces_ * kPieceBytes) pieces_ = std::move(pieces);
}

MachineLimits::~MachineLimits() { ::munmap(buffer_, num_pieces_ * kPieceBytes); }

double MachineLimits::measure_dram(double seconds) {
  double read = 0;
  const Clock::time_point began = Clock::now();
  do {
    pool_.parallel_for(pieces_.size(), [&](std::size_t i, std::size_t) {
      read_bytes(pieces_[i].data(), pieces_[i].size());
    });
    for (const auto& piece : pieces_) read += static_cast<double>(piece.size());
  } while (seconds_since(began) < seconds);
  return read / seconds_since(began);
}

double MachineLimits::measure_loop(const MatrixLoop& loop, double seconds) {
  // Short tasks from one queue, so that a thread that starts late or is interrupted does less
  // instead of being waited for.
  std::int64_t rounds = 64;
  for (;; rounds *= 2) {
    const Clock::time_point began = Clock::now();
    loop.run(rounds);
    if (seconds_since(began) > 1e-4) break;
  }
  const std::size_t tasks = 16 * pool_.num_threads();
  double operations = 0;
  const double cpu_before = cpu_seconds();
  const Clock::time_point began = Clock::now();
  do {
    pool_.parallel_for(tasks, [&](std::size_t, std::size_t) { loop.run(rounds); });
    operations += static_cast<double>(tasks) * static_cast<double>(rounds) * loop.operations;
  } while (seconds_since(began) < seconds);
  const double took = seconds_since(began);
  core_share_ = std::min(
      1.0, (cpu_seconds() - cpu_before) / (took * static_cast<double>(pool_.num_threads())));
  return operations / took;
}

MachineRates MachineLimits::measure(double seconds) {
  MachineRates rates;
  rates.dram_bytes_per_second = measure_dram(seconds * 2 / 3);
  rates.matrix_operations_per_second = measure_loop(matrix_loop_, seconds / 3);
  rates.core_share = core_share_;
  return rates;
}

std::string cpu_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (!line.starts_with("model name")) continue;
    const std::size_t at = line.find(": ");
    if (at != std::string::npos) return line.substr(at + 2);
  }
  return "unknown CPU";
}

double median(std::vector<double> values) {
  MOIETY_CHECK(!values.empty(), "median of nothing");
  std::sort(values.begin(), values.end());
  const std::size_t half = values.size() / 2;
  return values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2;
}

}  // namespace moiety::bench
