#include "router/cluster_moe.h"

#include <algorithm>

#include "common/log.h"
#include "kernels/elementwise.h"

namespace moiety {
namespace {

std::size_t size(std::int64_t value) { return static_cast<std::size_t>(value); }

}  // namespace

ClusterMoe::ClusterMoe(std::unique_ptr<fabric::RouterLane> lane,
                       const ClusterMoeOptions& options,
                       SuspectCallback on_suspect)
    : lane_(std::move(lane)), options_(options), on_suspect_(std::move(on_suspect)) {}

BackendStats ClusterMoe::stats() const {
  BackendStats stats = stats_;
  stats.bytes_sent = lane_->bytes_sent();
  stats.bytes_received = lane_->bytes_received();
  return stats;
}

void ClusterMoe::begin_step(std::uint64_t step) { step_ = step; }

std::vector<WorkerId> ClusterMoe::apply(const EpochView& view) {
  epoch_ = view.placement.epoch;
  owners_ = view.placement.owners;
  std::map<WorkerId, const WorkerEndpoint*> wanted;
  for (const WorkerEndpoint& endpoint : view.workers) wanted[endpoint.id] = &endpoint;
  for (auto it = incarnations_.begin(); it != incarnations_.end();) {
    const auto found = wanted.find(it->first);
    if (found == wanted.end() || found->second->incarnation != it->second) {
      lane_->disconnect(it->first.value);
      it = incarnations_.erase(it);
    } else {
      ++it;
    }
  }
  std::vector<WorkerId> lost;
  for (const auto& [id, endpoint] : wanted) {
    if (incarnations_.contains(id)) continue;
    const auto connected = lane_->connect(endpoint->lane_address, id.value, endpoint->incarnation,
                                          Clock::now() + options_.connect_timeout);
    if (connected) {
      incarnations_[id] = endpoint->incarnation;
      continue;
    }
    log_warning("epoch {}: cannot reach worker {} at {}: {}", epoch_.value, id.value,
                endpoint->lane_address, connected.error().message);
    if (on_suspect_) on_suspect_(id, endpoint->incarnation, connected.error().message);
    lost.push_back(id);
  }
  for (WorkerId id : view.placement.workers()) {
    if (!wanted.contains(id)) lost.push_back(id);
  }
  return lost;
}

void ClusterMoe::lose(WorkerId worker, const std::string& why) {
  const auto it = incarnations_.find(worker);
  if (it == incarnations_.end()) return;
  log_warning("worker {} is lost: {}", worker.value, why);
  const std::uint64_t incarnation = it->second;
  incarnations_.erase(it);
  lane_->disconnect(worker.value);
  if (on_suspect_) on_suspect_(worker, incarnation, why);
}

void ClusterMoe::idle_wait(Deadline deadline) {
  const fabric::Event event = lane_->wait(deadline);
  if (event.type == fabric::Event::Type::kPeerLost) {
    lose(WorkerId{static_cast<std::uint32_t>(event.peer)}, "its connection ended");
  } else if (event.type == fabric::Event::Type::kMessage) {
    ++stats_.stale_dropped;
  }
}

void ClusterMoe::build_parts() {
  parts_.clear();
  row_failed_.assign(size(input_.num_rows), 0);
  const auto& owners = owners_.size() > size(input_.layer) ? owners_[size(input_.layer)]
                                                           : std::vector<std::vector<WorkerId>>{};
  const std::size_t top_k = size(input_.top_k);
  const std::size_t hidden = size(input_.hidden_size);
  std::vector<WorkerId> chosen(top_k);
  for (std::size_t row = 0; row < size(input_.num_rows); ++row) {
    bool reachable = true;
    for (std::size_t slot = 0; slot < top_k && reachable; ++slot) {
      const std::int32_t expert = input_.topk_ids[row * top_k + slot];
      if (expert < 0) {
        reachable = false;  // the row failed in an earlier layer
        break;
      }
      reachable = false;
      if (size(expert) < owners.size()) {
        for (WorkerId owner : owners[size(expert)]) {
          if (!incarnations_.contains(owner)) continue;
          chosen[slot] = owner;
          reachable = true;
          break;
        }
      }
      if (!reachable) {
        const bool placed = size(expert) < owners.size() && !owners[size(expert)].empty();
        failure_ =
            fail(ErrorCode::kWorkerLost,
                 "expert " + std::to_string(expert) + " of layer " + std::to_string(input_.layer) +
                     (placed ? " was on worker " + std::to_string(owners[size(expert)][0].value) +
                                   ", which is lost; try again when it is back"
                             : " is on no worker of epoch " + std::to_string(epoch_.value)));
        row_failed_[row] = 1;
      }
    }
    if (!reachable) continue;
    for (std::size_t slot = 0; slot < top_k; ++slot) {
      Part& part = parts_[chosen[slot]];
      if (part.rows.empty() || part.rows.back() != row) {
        part.rows.push_back(static_cast<std::uint32_t>(row));
        part.dispatch.pairs.row_offsets.push_back(
            static_cast<std::uint32_t>(part.dispatch.pairs.num_pairs()));
        part.dispatch.rows.insert(part.dispatch.rows.end(), &input_.rows[row * hidden],
                                  &input_.rows[row * hidden] + hidden);
      }
      part.dispatch.pairs.experts.push_back(input_.topk_ids[row * top_k + slot]);
      part.dispatch.pairs.weights.push_back(input_.topk_weights[row * top_k + slot]);
      part.slots.push_back(static_cast<std::uint32_t>(row * top_k + slot));
    }
  }
  for (auto& [worker, part] : parts_) {
    part.dispatch.pairs.row_offsets.push_back(
        static_cast<std::uint32_t>(part.dispatch.pairs.num_pairs()));
    stats_.row_copies += part.rows.size();
  }
  stats_.rows += size(input_.num_rows);
  ++stats_.layers;
}

void ClusterMoe::begin(const MoeLayerInput& input) {
  input_ = input;
  build_parts();
  sent_at_ = Clock::now();
  std::vector<WorkerId> gone;
  for (auto& [worker, part] : parts_) {
    part.dispatch.combine = options_.combine;
    part.dispatch.dtype = options_.dtype;
    part.dispatch.hidden_size = input.hidden_size;
    part.header.kind = fabric::Kind::kDispatch;
    part.header.epoch = epoch_.value;
    part.header.step = step_;
    part.header.layer = static_cast<std::uint32_t>(input.layer);
    part.header.sender = options_.router_id;
    part.header.incarnation = incarnations_.at(worker);
    if (lane_->send(worker.value, part.header, encode_dispatch(part.dispatch))) {
      part.sent = true;
      ++stats_.dispatches;
    } else {
      gone.push_back(worker);
    }
  }
  for (WorkerId worker : gone) lose(worker, "a message could not be sent to it");
}

void ClusterMoe::take_reply(WorkerId worker, Part& part, const fabric::Event& event) {
  const fabric::Header& header = event.header;
  if (header.kind == fabric::Kind::kError) {
    const std::string text(reinterpret_cast<const char*>(event.payload.data()),
                           event.payload.size());
    const std::size_t line = text.find('\n');
    const std::string why = line == std::string::npos ? text : text.substr(line + 1);
    failure_ = fail(ErrorCode::kUnavailable,
                    "worker " + std::to_string(worker.value) + " could not compute layer " +
                        std::to_string(header.layer) + " (" + why + "); it is replaced, try again");
    part.sent = false;  // answered, but without rows
    part.refused = true;
    lose(worker, why);
    return;
  }
  const std::size_t rows =
      options_.combine == CombineMode::kPerExpert ? part.slots.size() : part.rows.size();
  part.reply.resize(rows * size(input_.hidden_size));
  if (auto decoded = decode_rows(event.payload, part.reply); !decoded) {
    part.sent = false;
    lose(worker, decoded.error().message);
    return;
  }
  part.done = true;
}

void ClusterMoe::await_replies() {
  std::size_t waiting = 0;
  for (const auto& [worker, part] : parts_) waiting += part.sent ? 1 : 0;
  const Deadline deadline = sent_at_ + options_.reply_timeout;
  std::uint64_t slowest_ns = 0;
  while (waiting > 0) {
    const fabric::Event event = lane_->wait(deadline);
    const WorkerId worker{static_cast<std::uint32_t>(event.peer)};
    const auto it = parts_.find(worker);
    const bool open = it != parts_.end() && it->second.sent && !it->second.done;
    switch (event.type) {
      case fabric::Event::Type::kMessage:
        if (!open || !event.header.answers(it->second.header)) {
          ++stats_.stale_dropped;
          break;
        }
        take_reply(worker, it->second, event);
        slowest_ns = std::max(slowest_ns, event.header.finished_ns - event.header.started_ns);
        --waiting;
        break;
      case fabric::Event::Type::kPeerLost:
        lose(worker, "its connection ended");
        if (open) {
          it->second.sent = false;
          --waiting;
        }
        break;
      case fabric::Event::Type::kTimeout:
        for (auto& [silent, part] : parts_) {
          if (!part.sent || part.done) continue;
          lose(silent, "it did not answer within " +
                           std::to_string(options_.reply_timeout.count()) + " ms");
          part.sent = false;
        }
        waiting = 0;
        break;
      case fabric::Event::Type::kInterrupted:
        break;  // new requests wait for the next step
    }
  }
  stats_.wait += Clock::now() - sent_at_;
  stats_.compute += std::chrono::nanoseconds(slowest_ns);
}

void ClusterMoe::combine_per_worker(std::span<float> y) {
  const std::size_t hidden = size(input_.hidden_size);
  for (const auto& [worker, part] : parts_) {
    for (std::size_t i = 0; part.done && i < part.rows.size(); ++i) {
      kernels::add(y.subspan(part.rows[i] * hidden, hidden), &part.reply[i * hidden]);
    }
  }
}

void ClusterMoe::combine_per_expert(std::span<float> y) {
  const std::size_t hidden = size(input_.hidden_size);
  const std::size_t top_k = size(input_.top_k);
  std::vector<const float*> row_of_slot(size(input_.num_rows) * top_k, nullptr);
  for (const auto& [worker, part] : parts_) {
    for (std::size_t i = 0; part.done && i < part.slots.size(); ++i) {
      row_of_slot[part.slots[i]] = &part.reply[i * hidden];
    }
  }
  // The same additions in the same order as ExpertRunner::run_rows: from zero, slot by slot.
  for (std::size_t i = 0; i < row_of_slot.size(); ++i) {
    if (row_of_slot[i] != nullptr)
      kernels::add(y.subspan(i / top_k * hidden, hidden), row_of_slot[i]);
  }
}

void ClusterMoe::finish(std::span<float> y, std::span<std::uint8_t> failed) {
  await_replies();
  const std::size_t hidden = size(input_.hidden_size);
  std::fill(y.begin(), y.end(), 0.0f);
  if (options_.combine == CombineMode::kPerExpert) {
    combine_per_expert(y);
  } else {
    combine_per_worker(y);
  }
  for (const auto& [worker, part] : parts_) {
    if (part.done) continue;
    if (!part.refused) {
      failure_ =
          fail(ErrorCode::kWorkerLost,
               "worker " + std::to_string(worker.value) + " was lost while it computed layer " +
                   std::to_string(input_.layer) + "; try again when it is back");
    }
    for (std::uint32_t row : part.rows) row_failed_[row] = 1;
  }
  for (std::size_t row = 0; row < row_failed_.size(); ++row) {
    if (row_failed_[row] == 0) continue;
    failed[row] = 1;
    std::fill_n(&y[row * hidden], hidden, 0.0f);
  }
}

}  // namespace moiety
