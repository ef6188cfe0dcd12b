#include "fabric/protocol.h"

#include <fmt/format.h>

#include <bit>
#include <cstring>
#include <type_traits>

#include "common/secret.h"

namespace moiety::fabric {
namespace {

static_assert(std::endian::native == std::endian::little,
              "lanes send integers as they stand in memory");

constexpr std::uint32_t kRequestMagic = 0x4859'4f4d;  // "MOYH"
constexpr std::uint32_t kAnswerMagic = 0x4159'4f4d;   // "MOYA"

class Writer {
 public:
  template <class Int>
  void number(Int value) {
    static_assert(std::is_unsigned_v<Int>);
    bytes_.append(reinterpret_cast<const char*>(&value), sizeof value);
  }
  void text(std::string_view value) {
    number(static_cast<std::uint32_t>(value.size()));
    bytes_.append(value);
  }
  std::vector<std::byte> bytes() const {
    const auto view = std::as_bytes(std::span(bytes_));
    return {view.begin(), view.end()};
  }

 private:
  std::string bytes_;
};

/// Reads never leave the buffer: past its end they give zero and ok() turns false.
class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : rest_(bytes) {}
  template <class Int>
  Int number() {
    Int value{};
    if (rest_.size() < sizeof value) {
      ok_ = false;
      return value;
    }
    std::memcpy(&value, rest_.data(), sizeof value);
    rest_ = rest_.subspan(sizeof value);
    return value;
  }
  std::string text() {
    const auto size = number<std::uint32_t>();
    if (!ok_ || rest_.size() < size) {
      ok_ = false;
      return {};
    }
    std::string value(reinterpret_cast<const char*>(rest_.data()), size);
    rest_ = rest_.subspan(size);
    return value;
  }
  bool ok() const { return ok_; }
  bool finished() const { return ok_ && rest_.empty(); }

 private:
  std::span<const std::byte> rest_;
  bool ok_ = true;
};

std::vector<std::byte> encode_answer(std::uint64_t worker,
                                     std::uint64_t incarnation,
                                     std::string_view error_name,
                                     std::string_view message) {
  Writer writer;
  writer.number(kAnswerMagic);
  writer.number(kLaneVersion);
  writer.number(worker);
  writer.number(incarnation);
  writer.text(error_name);
  writer.text(message);
  return writer.bytes();
}

HelloVerdict refuse(HelloVerdict verdict,
                    ErrorCode code,
                    std::string message,
                    std::uint64_t worker = 0,
                    std::uint64_t incarnation = 0) {
  verdict.accepted = false;
  verdict.answer = encode_answer(worker, incarnation, error_info(code).name, message);
  verdict.refusal = std::move(message);
  return verdict;
}

}  // namespace

std::vector<std::byte> encode_hello(const HelloRequest& request) {
  Writer writer;
  writer.number(kRequestMagic);
  writer.number(kLaneVersion);
  writer.number(request.router);
  writer.number(request.worker);
  writer.number(request.incarnation);
  writer.text(request.token);
  return writer.bytes();
}

HelloVerdict judge_hello(std::span<const std::byte> request, const LaneIdentity& port) {
  HelloVerdict verdict;
  Reader reader(request);
  if (reader.number<std::uint32_t>() != kRequestMagic || request.size() > kMaxHelloBytes) {
    return refuse(std::move(verdict), ErrorCode::kDataLoss, "this is not a hello of a router");
  }
  if (const auto version = reader.number<std::uint32_t>(); version != kLaneVersion) {
    return refuse(
        std::move(verdict), ErrorCode::kFailedPrecondition,
        fmt::format(
            "the router speaks lane version {}, the worker {}: run the same release on both",
            version, kLaneVersion));
  }
  verdict.router = reader.number<std::uint64_t>();
  const auto worker = reader.number<std::uint64_t>();
  const auto incarnation = reader.number<std::uint64_t>();
  const std::string token = reader.text();
  if (!reader.finished()) {
    verdict.router = 0;
    return refuse(std::move(verdict), ErrorCode::kDataLoss, "the hello is cut short or too long");
  }
  if (!secrets_equal(token, port.token)) {
    return refuse(std::move(verdict), ErrorCode::kInvalidArgument,
                  "the router's token is not this cluster's: give router and worker the same one");
  }
  if (worker != port.id || incarnation != port.incarnation) {
    return refuse(std::move(verdict), ErrorCode::kLeaseLost,
                  fmt::format("worker {} incarnation {} was expected here, but this is worker {} "
                              "incarnation {}: fetch "
                              "the current placement",
                              worker, incarnation, port.id, port.incarnation),
                  port.id, port.incarnation);
  }
  verdict.accepted = true;
  verdict.answer = encode_answer(port.id, port.incarnation, "", "");
  return verdict;
}

Result<void> check_hello_answer(std::span<const std::byte> answer,
                                std::uint64_t worker,
                                std::uint64_t incarnation) {
  Reader reader(answer);
  if (reader.number<std::uint32_t>() != kAnswerMagic) {
    return fail(ErrorCode::kDataLoss, "what answered is not a worker's port");
  }
  const auto version = reader.number<std::uint32_t>();
  const auto answered_worker = reader.number<std::uint64_t>();
  const auto answered_incarnation = reader.number<std::uint64_t>();
  if (reader.ok() && version != kLaneVersion) {
    return fail(
        ErrorCode::kFailedPrecondition,
        fmt::format(
            "the worker speaks lane version {}, the router {}: run the same release on both",
            version, kLaneVersion));
  }
  const std::string error_name = reader.text();
  std::string message = reader.text();
  if (!reader.finished())
    return fail(ErrorCode::kDataLoss, "the worker's answer to the hello is damaged");
  if (!error_name.empty()) return fail(error_code_from_name(error_name), std::move(message));
  if (answered_worker != worker || answered_incarnation != incarnation) {
    return fail(
        ErrorCode::kLeaseLost,
        fmt::format("worker {} incarnation {} was expected, worker {} incarnation {} answered",
                    worker, incarnation, answered_worker, answered_incarnation));
  }
  return {};
}

Result<void> check_payload_size(std::size_t bytes) {
  if (bytes <= kMaxPayloadBytes) return {};
  return fail(
      ErrorCode::kInvalidArgument,
      fmt::format(
          "a message of {} bytes is longer than a lane carries ({}): send fewer rows at once",
          bytes, kMaxPayloadBytes));
}

bool valid_header(const Header& header) {
  return header.magic == Header{}.magic &&
         (header.kind == Kind::kDispatch || header.kind == Kind::kReply ||
          header.kind == Kind::kError);
}

}  // namespace moiety::fabric
