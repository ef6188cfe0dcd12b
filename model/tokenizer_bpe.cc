#include "model/tokenizer_bpe.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "common/check.h"
#include "common/utf8.h"
#include "model/byte_level.h"

namespace moiety {
namespace {

constexpr char32_t kTableEnd = 0x10000;

// 0xC0, 0xC1 and 0xF5 to 0xFF occur nowhere in UTF-8.
bool occurs_in_utf8(int byte) { return byte < 0xC0 || (byte > 0xC1 && byte < 0xF5); }

}  // namespace

Result<BpeModel> BpeModel::build(Vocabulary vocab,
                                 const std::vector<MergeRules::Merge>& merges,
                                 const Options& options) {
  BpeModel model;
  model.options_ = options;
  model.vocab_ = std::move(vocab);
  MOIETY_ASSIGN(model.merges_, MergeRules::build(model.vocab_, merges));
  MOIETY_TRY(model.find_bytes());
  if (options.alphabet == Alphabet::kBytes) {
    for (std::size_t i = 0; i < model.vocab_.size(); ++i) {
      model.longest_bytes_ = std::max(model.longest_bytes_, model.vocab_[i].text.size());
    }
    return model;
  }
  model.character_ids_.assign(kTableEnd, -1);
  for (std::size_t i = 0; i < model.vocab_.size(); ++i) {
    const auto [text, id] = model.vocab_[i];
    if (text.empty()) continue;
    const CodePoint first = first_code_point(text);
    if (first.bytes == text.size() && first.value < kTableEnd) {
      model.character_ids_[first.value] = id;
    }
  }
  model.drops_unknown_ = options.unk_id < 0;
  // Tokens that stand for characters without a token are not spelled like them, so that the rules
  // do not tell where they join.
  model.may_part_ = options.unk_id < 0 || !model.merges_.uses(options.unk_id);
  if (options.byte_fallback) {
    for (const std::int32_t id : model.byte_ids_) {
      if (id >= 0 && model.merges_.uses(id)) model.may_part_ = false;
    }
  }
  return model;
}

Result<void> BpeModel::find_bytes() {
  const bool spelled = options_.alphabet == Alphabet::kBytes;
  for (int byte = 0; byte < 256; ++byte) {
    std::int32_t& id = byte_ids_[static_cast<std::size_t>(byte)];
    if (!spelled) {
      id = options_.byte_fallback ? vocab_.find(fmt::format("<0x{:02X}>", byte)) : -1;
      continue;
    }
    id = vocab_.find(byte_level_character(static_cast<std::uint8_t>(byte)));
    if (id < 0 && occurs_in_utf8(byte)) {
      return fail(
          ErrorCode::kInvalidArgument,
          fmt::format("vocab: no token for byte 0x{:02x}: not a byte-level vocabulary", byte));
    }
  }
  return {};
}

bool BpeModel::encode(std::string_view piece,
                      std::size_t most_ids,
                      Scratch& scratch,
                      std::vector<std::int32_t>& ids) const {
  const std::size_t least_ids = longest_bytes_ == 0 ? 0 : piece.size() / longest_bytes_;
  if (ids.size() + least_ids > most_ids) return false;
  if (!may_part_ || options_.ignore_merges) {
    encode_part(piece, scratch, ids);
    return ids.size() <= most_ids;
  }
  while (!piece.empty()) {
    const std::size_t size = first_part(piece);
    encode_part(piece.substr(0, size), scratch, ids);
    if (ids.size() > most_ids) return false;
    piece.remove_prefix(size);
  }
  return true;
}

std::size_t BpeModel::first_part(std::string_view piece) const {
  CodePoint left = first_code_point(piece);
  std::size_t size = left.bytes;
  bool left_known = character_id(left.value, piece.substr(0, left.bytes)) >= 0;
  while (size < piece.size()) {
    const CodePoint right = first_code_point(piece.substr(size));
    const bool right_known = character_id(right.value, piece.substr(size, right.bytes)) >= 0;
    // Two that are not known may fuse; one that leaves no token lets its neighbours meet.
    const bool may_meet =
        drops_unknown_ ? !(left_known && right_known) : !(left_known || right_known);
    if (!may_meet && !merges_.may_join(left.value, right.value)) break;
    left = right;
    left_known = right_known;
    size += right.bytes;
  }
  return size;
}

void BpeModel::encode_part(std::string_view part,
                           Scratch& scratch,
                           std::vector<std::int32_t>& ids) const {
  const bool is_short = !part.empty() && part.size() <= WordCache::kMaxBytes;
  if (is_short) {
    if (const auto known = scratch.words.find(part); !known.empty()) {
      ids.insert(ids.end(), known.begin(), known.end());
      return;
    }
  }
  encode_slowly(part, scratch);
  ids.insert(ids.end(), scratch.ids.begin(), scratch.ids.end());
  if (is_short) scratch.words.put(part, scratch.ids);
}

void BpeModel::encode_slowly(std::string_view part, Scratch& scratch) const {
  const bool bytes = options_.alphabet == Alphabet::kBytes;
  auto& ids = scratch.ids;
  ids.clear();
  if (options_.ignore_merges) {
    if (bytes) {
      scratch.spelled.clear();
      append_byte_level(part, scratch.spelled);
    }
    if (const std::int32_t id = vocab_.find(bytes ? scratch.spelled : part); id >= 0) {
      ids.push_back(id);
      return;
    }
  }
  if (bytes) {
    spell_bytes(part, ids);
  } else {
    spell_characters(part, ids);
  }
  merges_.apply(ids, scratch.merges);
}

void BpeModel::spell_bytes(std::string_view part, std::vector<std::int32_t>& ids) const {
  for (const char byte : part) {
    const std::int32_t id = byte_ids_[static_cast<std::uint8_t>(byte)];
    MOIETY_CHECK(id >= 0, "the text is not UTF-8");
    ids.push_back(id);
  }
}

std::int32_t BpeModel::character_id(char32_t value, std::string_view character) const {
  return value < kTableEnd ? character_ids_[value] : vocab_.find(character);
}

void BpeModel::spell_characters(std::string_view part, std::vector<std::int32_t>& ids) const {
  bool pending = false;  // an unknown character that has no token yet
  const auto flush = [&] {
    if (pending) ids.push_back(options_.unk_id);
    pending = false;
  };
  while (!part.empty()) {
    const CodePoint next = first_code_point(part);
    const std::string_view character = part.substr(0, next.bytes);
    part.remove_prefix(next.bytes);
    if (const std::int32_t id = character_id(next.value, character); id >= 0) {
      flush();
      ids.push_back(id);
      continue;
    }
    const bool has_bytes = std::all_of(character.begin(), character.end(), [&](char byte) {
      return byte_ids_[static_cast<std::uint8_t>(byte)] >= 0;
    });
    if (has_bytes) {
      // As in PyPI tokenizers, an unknown character before it is written after it.
      for (const char byte : character) ids.push_back(byte_ids_[static_cast<std::uint8_t>(byte)]);
      continue;
    }
    if (options_.unk_id < 0) continue;
    if (!options_.fuse_unk) flush();
    pending = true;
  }
  flush();
}

}  // namespace moiety
