#include <fmt/format.h>

#include <cstring>
#include <new>

#include "common/log.h"
#include "fabric/mpi/engine.h"
#include "fabric/protocol.h"

// Messages of the engine: sending, matching, completing, and what they mean.
namespace moiety::fabric::mpi {
namespace {

constexpr int kMatchesPerRound = 64;

std::vector<std::byte> join(const void* head,
                            std::size_t head_bytes,
                            std::span<const std::byte> tail) {
  std::vector<std::byte> bytes(head_bytes + tail.size());
  std::memcpy(bytes.data(), head, head_bytes);
  if (!tail.empty()) std::memcpy(bytes.data() + head_bytes, tail.data(), tail.size());
  return bytes;
}

}  // namespace

bool Engine::isend(int rank, Tag tag, std::vector<std::byte> bytes) {
  outgoing_.push_back({std::move(bytes), MPI_REQUEST_NULL, rank});
  Outgoing& message = outgoing_.back();
  const int status = MPI_Isend(message.bytes.data(), static_cast<int>(message.bytes.size()),
                               MPI_BYTE, rank, tag, MPI_COMM_WORLD, &message.request);
  int complete = 0;
  if (status == MPI_SUCCESS) MPI_Test(&message.request, &complete, MPI_STATUS_IGNORE);
  if (status != MPI_SUCCESS || complete != 0) outgoing_.pop_back();
  return status == MPI_SUCCESS;
}

void Engine::ring(int rank) {
  if (const auto connection = find_rank(rank)) bell_->ring(connection->line);
}

void Engine::greet(int rank, Tag tag, std::uint64_t connection, std::span<const std::byte> bytes) {
  if (!isend(rank, tag, join(&connection, sizeof connection, bytes)))
    log_debug("mpi: a greeting to rank {} was not sent", rank);
  ring(rank);
}

bool Engine::send(const std::shared_ptr<Connection>& connection,
                  const Header& header,
                  std::vector<std::byte> payload) {
  const WireHeader wire{connection->number, connection->next_to_send++, payload.size(), header};
  bytes_sent_ += payload.size();
  bool sent = false;
  if (payload.size() <= kInlineBytes) {
    sent = isend(connection->rank, kMessage, join(&wire, sizeof wire, payload));
  } else {
    sent = isend(connection->rank, kMessage, join(&wire, sizeof wire, {})) &&
           isend(connection->rank, kPayload, std::move(payload));
  }
  bell_->ring(connection->line);
  if (!sent) {
    lose(connection, fail(ErrorCode::kWorkerLost,
                          fmt::format("MPI refused to send to rank {}", connection->rank)));
  }
  return sent;
}

bool Engine::match_arrivals() {
  int matched = 0;
  for (; matched < kMatchesPerRound; ++matched) {
    int found = 0;
    MPI_Message message = MPI_MESSAGE_NULL;
    MPI_Status status;
    if (MPI_Improbe(MPI_ANY_SOURCE, MPI_ANY_TAG, MPI_COMM_WORLD, &found, &message, &status) !=
            MPI_SUCCESS ||
        found == 0) {
      break;
    }
    int size = 0;
    MPI_Get_count(&status, MPI_BYTE, &size);
    auto& queue = sources_[status.MPI_SOURCE].queue;
    Incoming& incoming = queue.emplace_back();
    incoming.tag = status.MPI_TAG;
    incoming.bytes.resize(static_cast<std::size_t>(size));
    MPI_Imrecv(incoming.bytes.data(), size, MPI_BYTE, &message, &incoming.request);
  }
  return matched > 0;
}

bool Engine::complete_arrivals() {
  bool any = false;
  for (auto& [rank, source] : sources_) {
    while (!source.queue.empty()) {
      // Only the first: what is behind it has to wait for it anyway.
      int complete = 0;
      MPI_Test(&source.queue.front().request, &complete, MPI_STATUS_IGNORE);
      if (complete == 0) break;
      Incoming message = std::move(source.queue.front());
      source.queue.pop_front();
      handle(rank, source, message);
      any = true;
    }
  }
  return any;
}

bool Engine::complete_sends() {
  bool any = false;
  for (auto it = outgoing_.begin(); it != outgoing_.end();) {
    int complete = 0;
    MPI_Test(&it->request, &complete, MPI_STATUS_IGNORE);
    if (complete == 0) {
      ++it;
      continue;
    }
    any = true;
    ring(it->rank);  // its last part may have found the receiver asleep
    it = outgoing_.erase(it);
  }
  return any;
}

void Engine::handle(int rank, Source& source, Incoming& message) {
  if (message.tag == kPayload) {
    if (!source.waiting) return;  // of a lane that this process closed
    const WireHeader wire = *source.waiting;
    source.waiting.reset();
    if (message.bytes.size() != wire.payload_bytes) {
      refuse(rank, wire.connection, "a payload of another size than announced");
      return;
    }
    deliver(rank, wire, std::move(message.bytes));
    return;
  }
  if (source.waiting) {
    refuse(rank, source.waiting->connection, "a payload did not come");
    source.waiting.reset();
  }
  std::uint64_t connection = 0;
  if (message.bytes.size() < sizeof connection) {
    log_warning("mpi: rank {} sent {} bytes under tag {}; dropped", rank, message.bytes.size(),
                message.tag);
    return;
  }
  std::memcpy(&connection, message.bytes.data(), sizeof connection);
  switch (message.tag) {
    case kHello:
    case kAnswer:
      on_greeting_(rank, connection, std::span(message.bytes).subspan(sizeof connection));
      break;
    case kMessage:
      take_message(rank, source, message.bytes);
      break;
    case kBye:
      if (const auto known = find_rank(rank); known && known->number == connection)
        known->line_ended = true;
      break;
    default:
      log_warning("mpi: rank {} used the unknown tag {}; dropped", rank, message.tag);
  }
}

void Engine::take_message(int rank, Source& source, std::vector<std::byte>& bytes) {
  WireHeader wire;
  if (bytes.size() < sizeof wire) {
    std::memcpy(&wire.connection, bytes.data(), sizeof wire.connection);
    refuse(rank, wire.connection, fmt::format("a header of {} bytes", bytes.size()));
    return;
  }
  std::memcpy(&wire, bytes.data(), sizeof wire);
  const std::size_t behind = bytes.size() - sizeof wire;
  const bool is_inline = wire.payload_bytes <= kInlineBytes;
  if (!valid_header(wire.header) || wire.payload_bytes > kMaxPayloadBytes ||
      behind != (is_inline ? wire.payload_bytes : 0)) {
    refuse(rank, wire.connection, "a malformed header");
    return;
  }
  if (!is_inline) {
    source.waiting = wire;
    return;
  }
  deliver(rank, wire, {bytes.begin() + sizeof wire, bytes.end()});
}

void Engine::deliver(int rank, const WireHeader& wire, std::vector<std::byte> payload) {
  const auto connection = find_rank(rank);
  if (connection == nullptr || connection->number != wire.connection) return;  // late
  if (!connection->open) {
    refuse(rank, wire.connection, "a message before the hello");
    return;
  }
  if (wire.sequence != connection->next_to_arrive++) {
    refuse(rank, wire.connection, "a sequence number out of turn");
    return;
  }
  Event event;
  event.type = Event::Type::kMessage;
  event.peer = connection->peer;
  event.header = wire.header;
  event.payload = std::move(payload);
  events_.push_back(std::move(event));
}

void Engine::refuse(int rank, std::uint64_t number, const std::string& flaw) {
  const auto connection = find_rank(rank);
  if (connection == nullptr || connection->number != number) return;
  log_warning("mpi connection {} with rank {}: {}; closing it", connection->peer, rank, flaw);
  greet(rank, kBye, number, {});
  lose(connection, fail(ErrorCode::kDataLoss, flaw));
}

}  // namespace moiety::fabric::mpi
