// Includes nothing of its own project, so no header's change concerns it.
namespace toy {

float step() { return 1; }

}  // namespace toy
