"""Fine-tuning: policies, recipes, delta files and data in COCO format."""
