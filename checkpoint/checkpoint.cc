#include "checkpoint/checkpoint.h"

#include <algorithm>
#include <map>
#include <set>

namespace moiety {
namespace {

constexpr std::uint64_t kMaxConfigBytes = std::uint64_t{16} << 20;

std::string shape_text(const std::vector<std::int64_t>& shape) {
  std::string text = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) {
    if (i > 0) text += ", ";
    text += std::to_string(shape[i]);
  }
  return text + "]";
}

// Collects names and prints the first few with the count of all.
class NameList {
 public:
  void add(std::string_view name) {
    constexpr std::size_t kNamed = 3;
    if (count_ < kNamed) names_ += (count_ > 0 ? ", '" : "'") + std::string(name) + "'";
    ++count_;
  }
  bool empty() const { return count_ == 0; }
  std::string text() const {
    return (count_ == 1 ? "1 tensor: " : std::to_string(count_) + " tensors: ") + names_ +
           (count_ > 3 ? ", ..." : "");
  }

 private:
  std::string names_;
  std::size_t count_ = 0;
};

constexpr std::string_view kEmbedding = "model.embed_tokens.weight";
constexpr std::string_view kHead = "lm_head.weight";

// The form in which these files store experts: the one whose first expert is there, else the usual
// one, so that the message about missing tensors has the usual names.
std::size_t find_layout(const SafetensorsSet& set, Architecture architecture) {
  std::int32_t layer = 0;
  while (architecture.layers[static_cast<std::size_t>(layer)].is_dense()) ++layer;
  for (std::size_t i = 0; i < architecture.layouts.size(); ++i) {
    architecture.layout = i;
    if (set.find(architecture.expert_source(layer, 0).down_proj.tensor) != nullptr) return i;
  }
  return 0;
}

// Tensors that some programs save and that hold nothing which config.json does not say.
bool is_redundant(std::string_view name) { return name.ends_with(".rotary_emb.inv_freq"); }

// A head beside tied embeddings must be the embedding, or one of the two files is wrong.
Result<void> check_tied_head(const SafetensorsSet& set) {
  const TensorInfo* head = set.find(kHead);
  const TensorInfo* embedding = set.find(kEmbedding);
  if (head == nullptr) return {};
  bool same = head->dtype == embedding->dtype && head->shape == embedding->shape;
  constexpr std::uint64_t kPiece = std::uint64_t{1} << 20;
  std::vector<std::byte> a, b;
  for (std::uint64_t begin = 0; same && begin < head->num_bytes; begin += kPiece) {
    a.resize(std::min(kPiece, head->num_bytes - begin));
    b.resize(a.size());
    MOIETY_TRY(set.read_range(kHead, begin, a));
    MOIETY_TRY(set.read_range(kEmbedding, begin, b));
    same = a == b;
  }
  if (same) return {};
  return fail(ErrorCode::kInvalidArgument,
              set.files()[head->file].string() +
                  ": tensor 'lm_head.weight' differs from the embedding, but config.json says "
                  "tie_word_embeddings: true; one of the two is wrong");
}

Result<void> check_tensors(const SafetensorsSet& set, const Architecture& architecture) {
  const std::vector<ExpectedTensor> expected = expected_tensors(architecture);
  NameList missing;
  std::set<std::string_view> known;
  for (const ExpectedTensor& tensor : expected) {
    known.insert(tensor.name);
    if (const auto other = set.other_tensors().find(tensor.name);
        other != set.other_tensors().end()) {
      return fail(ErrorCode::kInvalidArgument,
                  set.files()[other->second.file].string() + ": tensor '" + tensor.name + "' is " +
                      other->second.dtype + ", weights must be F32, BF16 or F16");
    }
    const TensorInfo* info = set.find(tensor.name);
    if (info == nullptr) {
      missing.add(tensor.name);
      continue;
    }
    const std::string where = set.files()[info->file].string() + ": tensor '" + tensor.name + "' ";
    if (info->shape != tensor.shape) {
      return fail(ErrorCode::kInvalidArgument, where + "has shape " + shape_text(info->shape) +
                                                   ", config.json asks for " +
                                                   shape_text(tensor.shape));
    }
    if (info->dtype != DType::kF32 && info->dtype != DType::kBF16 && info->dtype != DType::kF16) {
      return fail(ErrorCode::kInvalidArgument, where + "is " +
                                                   std::string(dtype_name(info->dtype)) +
                                                   ", weights must be F32, BF16 or F16");
    }
  }
  if (!missing.empty()) {
    std::string why = "the weights lack " + missing.text() + ", which config.json asks for";
    if (set.find(kHead) == nullptr && !architecture.tie_embeddings) {
      why += " (tie_word_embeddings is false, so the head needs weights of its own)";
    }
    return fail(ErrorCode::kInvalidArgument, std::move(why));
  }
  if (architecture.tie_embeddings) {
    MOIETY_TRY(check_tied_head(set));
    known.insert(kHead);
  }
  std::map<std::uint32_t, NameList> unknown;  // by file
  for (const auto& [name, info] : set.tensors()) {
    if (!known.contains(name) && !is_redundant(name)) unknown[info.file].add(name);
  }
  for (const auto& [name, info] : set.other_tensors()) {
    if (!known.contains(name)) unknown[info.file].add(name);
  }
  if (!unknown.empty()) {
    const auto& [file, names] = *unknown.begin();
    return fail(ErrorCode::kInvalidArgument,
                set.files()[file].string() + ": holds what " + architecture.name +
                    " as config.json describes it does not use: " + names.text());
  }
  return {};
}

Result<Architecture> read_architecture(const std::filesystem::path& folder) {
  const std::filesystem::path config = folder / "config.json";
  const std::filesystem::path generation = folder / "generation_config.json";
  MOIETY_ASSIGN(const std::string text, read_regular_file(config, kMaxConfigBytes));
  const bool pruned = entry_exists(folder / "pruning_metadata.json");
  auto architecture = parse_architecture(text, pruned);
  if (!architecture) return with_context(config.string(), architecture.error());
  if (entry_exists(generation)) {
    MOIETY_ASSIGN(const std::string defaults, read_regular_file(generation, kMaxConfigBytes));
    const auto added = add_generation_config(defaults, *architecture);
    if (!added) return with_context(generation.string(), added.error());
  }
  return architecture;
}

}  // namespace

Checkpoint::Checkpoint(std::filesystem::path folder,
                       Architecture architecture,
                       SafetensorsSet tensors,
                       std::string fingerprint)
    : folder_(std::move(folder)),
      architecture_(std::move(architecture)),
      tensors_(std::move(tensors)),
      fingerprint_(std::move(fingerprint)) {}

Result<Checkpoint> Checkpoint::open(const std::filesystem::path& folder) {
  std::error_code ignored;
  if (!std::filesystem::is_directory(folder, ignored)) {
    return fail(ErrorCode::kNotFound,
                folder.string() +
                    ": no such folder; a checkpoint is a folder with config.json and "
                    "safetensors files");
  }
  MOIETY_ASSIGN(Architecture architecture, read_architecture(folder));
  MOIETY_ASSIGN(SafetensorsSet tensors, SafetensorsSet::open_folder(folder));
  architecture.layout = find_layout(tensors, architecture);
  const auto checked = check_tensors(tensors, architecture);
  if (!checked) return with_context(folder.string(), checked.error());
  MOIETY_ASSIGN(std::string fingerprint, tensors.fingerprint());
  return Checkpoint(folder, std::move(architecture), std::move(tensors), std::move(fingerprint));
}

}  // namespace moiety
