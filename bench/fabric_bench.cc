#include "bench/fabric_bench.h"

#include <algorithm>
#include <chrono>

#include "common/check.h"
#include "experts/exchange.h"
#include "kernels/elementwise.h"

namespace moiety::bench {
namespace {

constexpr std::uint64_t kOver = ~std::uint64_t{0};  // as a step: the stand-in may go
constexpr std::chrono::seconds kReplyTimeout{20};

/// One worker's share of a layer: its dispatch, and which token each of its rows is.
struct Share {
  Dispatch dispatch;
  std::vector<std::int32_t> tokens;
};

std::vector<Share> build_shares(const FabricCase& what, std::int32_t num_workers) {
  std::vector<Share> shares(static_cast<std::size_t>(num_workers));
  for (Share& share : shares) {
    share.dispatch.hidden_size = what.hidden_size;
    share.dispatch.pairs.row_offsets.push_back(0);
  }
  for (std::int32_t token = 0; token < what.tokens; ++token) {
    for (std::int32_t i = 0; i < what.fan_out; ++i) {
      Share& share = shares[static_cast<std::size_t>((token + i) % num_workers)];
      PairList& pairs = share.dispatch.pairs;
      share.tokens.push_back(token);
      for (std::int32_t slot = 0; slot < what.top_k / what.fan_out; ++slot) {
        pairs.experts.push_back(slot);
        pairs.weights.push_back(1.0f / static_cast<float>(what.top_k));
      }
      pairs.row_offsets.push_back(static_cast<std::uint32_t>(pairs.num_pairs()));
      share.dispatch.rows.resize(
          share.dispatch.rows.size() + static_cast<std::size_t>(what.hidden_size), 0.5f);
    }
  }
  return shares;
}

}  // namespace

Result<void> serve_stand_in(fabric::WorkerPort& port, std::uint64_t worker, Deadline deadline) {
  std::vector<float> rows;
  while (Clock::now() < deadline) {
    const fabric::Event event = port.wait(deadline);
    if (event.type != fabric::Event::Type::kMessage) continue;
    if (event.header.step == kOver) return {};
    MOIETY_ASSIGN(const Dispatch dispatch, decode_dispatch(event.payload));
    rows.assign(dispatch.rows.size(), 0.0f);
    fabric::Header header = event.header;
    header.kind = fabric::Kind::kReply;
    header.sender = worker;
    MOIETY_TRY(port.send(event.peer, header, encode_rows(rows)));
  }
  return fail(ErrorCode::kDeadlineExceeded, "nobody dismissed this stand-in");
}

void dismiss_stand_ins(fabric::RouterLane& lane, std::uint64_t num_workers) {
  fabric::Header header;
  header.step = kOver;
  header.incarnation = 1;
  for (std::uint64_t worker = 0; worker < num_workers; ++worker) {
    if (!lane.send(worker, header, {})) continue;
  }
  (void)lane.wait(Clock::now() + std::chrono::milliseconds(100));
}

Result<FabricMeasured> measure_fabric(fabric::RouterLane& lane,
                                      std::int32_t num_workers,
                                      const FabricCase& what,
                                      std::int32_t rounds) {
  MOIETY_CHECK(what.fan_out >= 1 && what.fan_out <= num_workers && what.top_k % what.fan_out == 0,
               "top-k is a multiple of the fan-out, which is at most the number of workers");
  const std::vector<Share> shares = build_shares(what, num_workers);
  const auto hidden = static_cast<std::size_t>(what.hidden_size);
  std::vector<float> sum(static_cast<std::size_t>(what.tokens) * hidden);
  std::vector<float> reply;
  FabricMeasured measured;
  const std::int32_t warm_up = std::max(1, rounds / 10);
  std::uint64_t sent_before = 0;
  std::uint64_t received_before = 0;
  for (std::int32_t round = 0; round < warm_up + rounds; ++round) {
    if (round == warm_up) {
      sent_before = lane.bytes_sent();
      received_before = lane.bytes_received();
    }
    const auto began = Clock::now();
    fabric::Header header;
    header.step = static_cast<std::uint64_t>(round) + 1;
    header.incarnation = 1;
    std::size_t waiting = 0;
    for (std::size_t worker = 0; worker < shares.size(); ++worker) {
      if (shares[worker].tokens.empty()) continue;
      MOIETY_TRY(lane.send(worker, header, encode_dispatch(shares[worker].dispatch)));
      ++waiting;
    }
    std::fill(sum.begin(), sum.end(), 0.0f);
    while (waiting > 0) {
      const fabric::Event event = lane.wait(Clock::now() + kReplyTimeout);
      if (event.type == fabric::Event::Type::kTimeout)
        return fail(ErrorCode::kDeadlineExceeded, "a stand-in does not answer");
      if (event.type == fabric::Event::Type::kPeerLost) return event.error;
      if (event.type != fabric::Event::Type::kMessage || !event.header.answers(header)) continue;
      const Share& share = shares[event.peer];
      reply.resize(share.tokens.size() * hidden);
      MOIETY_TRY(decode_rows(event.payload, reply));
      for (std::size_t row = 0; row < share.tokens.size(); ++row) {
        kernels::add(
            std::span(sum).subspan(static_cast<std::size_t>(share.tokens[row]) * hidden, hidden),
            &reply[row * hidden]);
      }
      --waiting;
    }
    if (round >= warm_up) {
      measured.layer_us.push_back(
          std::chrono::duration<double, std::micro>(Clock::now() - began).count());
    }
  }
  measured.bytes_sent = lane.bytes_sent() - sent_before;
  measured.bytes_received = lane.bytes_received() - received_before;
  for (const Share& share : shares) {
    if (share.tokens.empty()) continue;
    const std::uint64_t rows = share.tokens.size();
    const std::uint64_t pairs = share.dispatch.pairs.num_pairs();
    measured.expected_sent += 16 + 4 * (rows + 1) + 8 * pairs + 2 * rows * hidden;
    measured.expected_received += 4 * rows * hidden;
  }
  measured.expected_sent *= static_cast<std::uint64_t>(rounds);
  measured.expected_received *= static_cast<std::uint64_t>(rounds);
  std::sort(measured.layer_us.begin(), measured.layer_us.end());
  return measured;
}

}  // namespace moiety::bench
