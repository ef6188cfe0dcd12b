#include <openssl/evp.h>

#include <algorithm>

#include "checkpoint/checkpoint.h"
#include "common/check.h"

namespace moiety {
namespace {

constexpr std::uint64_t kEdgeBytes = 4096;

// SHA-256 of a string that is fed in pieces. A failure of the library (out of memory) aborts.
class Sha256 {
 public:
  Sha256() {
    MOIETY_CHECK(context_ && EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr), "EVP");
  }

  void add(std::span<const std::byte> bytes) {
    MOIETY_CHECK(EVP_DigestUpdate(context_.get(), bytes.data(), bytes.size()), "EVP");
  }

  // Little-endian, 8 bytes.
  void add(std::uint64_t number) {
    std::byte bytes[8];
    for (int i = 0; i < 8; ++i) bytes[i] = static_cast<std::byte>(number >> (8 * i));
    add(bytes);
  }

  void add_with_length(std::span<const std::byte> bytes) {
    add(bytes.size());
    add(bytes);
  }

  std::string hex() {
    unsigned char digest[32];
    MOIETY_CHECK(EVP_DigestFinal_ex(context_.get(), digest, nullptr), "EVP");
    std::string text;
    for (unsigned char byte : digest) {
      text += "0123456789abcdef"[byte >> 4];
      text += "0123456789abcdef"[byte & 15];
    }
    return text;
  }

 private:
  struct Free {
    void operator()(EVP_MD_CTX* context) const { EVP_MD_CTX_free(context); }
  };
  std::unique_ptr<EVP_MD_CTX, Free> context_{EVP_MD_CTX_new()};
};

}  // namespace

Result<std::string> SafetensorsSet::fingerprint() const {
  Sha256 hash;
  std::byte buffer[kEdgeBytes];
  for (const auto& [name, info] : tensors()) {
    hash.add_with_length(std::as_bytes(std::span(name)));
    hash.add_with_length(std::as_bytes(std::span(dtype_name(info.dtype))));
    hash.add(info.shape.size());
    for (std::int64_t size : info.shape) hash.add(static_cast<std::uint64_t>(size));
    const std::uint64_t edge_bytes = std::min(info.num_bytes, kEdgeBytes);
    const std::span edge(buffer, edge_bytes);
    for (std::uint64_t begin : {std::uint64_t{0}, info.num_bytes - edge_bytes}) {
      MOIETY_TRY(read_uncounted(name, info, begin, edge));
      hash.add_with_length(edge);
    }
  }
  return hash.hex();
}

}  // namespace moiety
